"""Synthetic cohorts of slides with lesions.

``anatomy`` draws positions, ``lesions`` lesions, ``nuclei`` sprites, ``painting`` pixels, ``generate`` files.
"""
