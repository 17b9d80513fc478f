"""Measurements other than a comparison of samplers: orders, overhead, statistics, parallel runs."""
