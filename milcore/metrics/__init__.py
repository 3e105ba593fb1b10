"""Metrics and their intervals: numpy, scipy, scikit-learn; no torch."""
