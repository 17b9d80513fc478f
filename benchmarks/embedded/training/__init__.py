"""The recipes of the embedded models."""
