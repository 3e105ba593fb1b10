"""Ray workers: training, sweeping, encoding and mapping.

Ray is first imported here, without what it says in a notebook that lacks widgets; there milcore shows its own progress.
"""

import logging
import warnings

logging.getLogger("ray.widgets").setLevel(logging.WARNING)
with warnings.catch_warnings():
    warnings.filterwarnings("ignore", message="IProgress not found")
    import ray  # noqa: F401 - see above
