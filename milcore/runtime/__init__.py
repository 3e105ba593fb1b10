"""What every room builds on: storage, progress, processes, memory, digests."""
