"""Evaluation: predictions, metrics, attention, report."""
