"""Global batches of bags, and their deal to ranks."""

from collections.abc import Sequence

import numpy as np


def global_batches(indices: Sequence[int], batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """The bags of an epoch in random order, cut into global batches; the last may be smaller."""
    order = np.random.default_rng([seed, epoch]).permutation(len(indices))
    shuffled = [indices[place] for place in order]
    return [shuffled[start : start + batch_size] for start in range(0, len(shuffled), batch_size)]


def deal(indices: Sequence[int], lengths: Sequence[int], world_size: int) -> list[list[int]]:
    """Bags dealt to ranks, longest first to the rank that holds the fewest instances; a rank may get none."""
    hands: list[list[int]] = [[] for _ in range(world_size)]
    load = [0] * world_size
    for index in sorted(indices, key=lambda i: (-lengths[i], i)):
        rank = load.index(min(load))
        hands[rank].append(index)
        load[rank] += lengths[index]
    return hands


def micro_batches(indices: Sequence[int], lengths: Sequence[int], max_instances: int) -> list[list[int]]:
    """Consecutive runs of bags that hold at most so many instances together; a larger bag stands alone."""
    runs: list[list[int]] = []
    held = 0
    for index in indices:
        if runs and held + lengths[index] <= max_instances:
            runs[-1].append(index)
            held += lengths[index]
        else:
            runs.append([index])
            held = lengths[index]
    return runs
