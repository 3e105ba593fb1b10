"""Slides, patients, labels and their splits."""
