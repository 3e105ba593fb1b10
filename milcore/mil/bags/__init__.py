"""Bags of instances: reading, packing, batches and their ranks."""
