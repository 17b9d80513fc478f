"""Recorded runs of the official implementations, and ours beside them."""
