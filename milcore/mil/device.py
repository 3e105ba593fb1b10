"""Device that a process computes on."""

import torch

from milcore.errors import InputError


def compute_device(use_gpu: bool) -> torch.device:
    """The CPU, or a CUDA device where one is asked for.

    Raises:
        InputError: there is none.
    """
    if use_gpu and not torch.cuda.is_available():
        raise InputError(
            "use_gpu: expected a CUDA device, got none here; allowed: on a machine with a GPU; leave it out here"
        )
    return torch.device("cuda" if use_gpu else "cpu")
