"""Feature extraction: patches of a store to features/<name>."""
