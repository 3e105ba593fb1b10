"""Training: loop, checkpoints, run folders, folds and sweeps."""
