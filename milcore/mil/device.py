"""Device that a process computes on, and its threads."""

import torch

from milcore.errors import InputError
from milcore.runtime.limits import cpus


def compute_device(use_gpu: bool) -> torch.device:
    """The CPU, or a CUDA device where one is asked for.

    From then on torch computes on no more threads than this process has CPUs.

    Raises:
        InputError: there is none.
    """
    if use_gpu and not torch.cuda.is_available():
        raise InputError(
            "use_gpu: expected a CUDA device, got none here; allowed: on a machine with a GPU; leave it out here"
        )
    torch.set_num_threads(min(torch.get_num_threads(), cpus()))
    return torch.device("cuda" if use_gpu else "cpu")
