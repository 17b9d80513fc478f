"""What training scripts read and call of a scheduler."""
