"""Distances between samples, and between distributions of them.

A metric takes tensors and returns numbers: it knows no solver, no record and no model. What is
compared in features takes any network that gives them (`features`).
"""
