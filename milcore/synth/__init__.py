"""Synthetic cohorts: anatomy (where things lie), lesions, nuclei (sprites), painting (pixels) and cohort (files)."""

from milcore.synth.cohort import synthesise

__all__ = ["synthesise"]
