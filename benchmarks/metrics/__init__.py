"""Distances between samples, and between distributions of them."""
