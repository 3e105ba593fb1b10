"""Keeps Kubeflow's executor from printing a step's whole input as JSON before the step's first line.

It configures Python's logging only where nobody has, and has no setting of its own. Warnings stay.
"""

import os

if os.environ.get("_KFP_RUNTIME") == "true":
    import logging

    logging.basicConfig(level=logging.WARNING)
