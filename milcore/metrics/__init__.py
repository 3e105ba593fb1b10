"""Metrics and their confidence intervals, without torch."""
