"""Findings as tables, plots, pictures and pages."""
