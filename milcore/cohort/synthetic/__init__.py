"""Synthetic cohorts: anatomy (positions), lesions, nuclei (sprites), painting (pixels) and generate (files)."""
