"""Slides to patches: tissue, tiling, extraction, accounting for every slide."""
