"""Metrics of predicted numbers against true ones, without torch."""
