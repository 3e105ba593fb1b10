"""Benchmarks: speed beside other tools, with the method written down.

Tests are never timed; timing lives here.
"""
