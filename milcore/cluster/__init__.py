"""Ray: training on several workers, sweeps, fan-out and job submission.

The only room that imports ray and kubernetes.
"""
