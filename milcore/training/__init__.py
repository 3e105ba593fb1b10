"""Training: the loop, checkpoints, run folders, cross-validation and sweeps."""
