"""Permutation-invariant pooling sigma of instances, and its streaming."""
