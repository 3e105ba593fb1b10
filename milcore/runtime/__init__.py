"""Storage, progress, processes, memory and digests for all other packages."""
