"""Threads of torch on a CPU, by shapes and CPUs.

Never by load: sums are rounded by how they are divided, so the same settings on the same number of CPUs give the same
bits, however busy the machine is.
"""

import contextlib
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from milcore.mil.instance_encoders.features import FeatureEncoder
from milcore.mil.model import MILModel
from milcore.runtime.limits import cpus

# in a chunk; pixels pass through convolutions, each with some times the products of a feature
FEATURES_PER_THREAD = 1 << 18
PIXELS_PER_THREAD = 1 << 17


def useful_threads(model: MILModel, instance: Tensor, instances: int) -> int:
    """Number of threads that a pass over so many instances makes use of.

    One for every 2^18 features, or 2^17 values of pixels, in a chunk, at most the CPUs: with less work each, threads
    wait for each other longer than they compute, on busy cores first. From there on they gain alone and on busy cores;
    benchmarks/results/threads.md has the table.

    Args:
        model: whose chunks they are.
        instance: any one, first axis kept.
        instances: of a pass.
    """
    rows = min(instances, model.encoder.rows_per_chunk(instance))
    each = FEATURES_PER_THREAD if isinstance(model.encoder, FeatureEncoder) else PIXELS_PER_THREAD
    return max(1, min(cpus(), rows * math.prod(instance.shape[1:]) // each))


@contextlib.contextmanager
def torch_threads(count: int) -> Iterator[int]:
    """Compute on so many threads for the length of the context; the number.

    Fewer where torch was told so, by ``OMP_NUM_THREADS`` for instance.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(min(count, before))
    try:
        yield min(count, before)
    finally:
        torch.set_num_threads(before)
