"""sigma: permutation-invariant pooling of instances, and its streaming."""
