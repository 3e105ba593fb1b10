"""Ray workers: training, sweeping, encoding and mapping."""
