"""Frozen encoders: patches to features."""
