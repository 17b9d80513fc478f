"""Where a plan's nodes are, and what the network is told there."""
