"""Metrics of predicted risks against follow-up with censoring, without torch."""
