"""Global batches of bags, and their distribution over ranks and micro-batches.

The global batch is formed first, from (seed, epoch) alone, then dealt to ranks: the trained weights do not depend on
the number of workers.
"""

from collections.abc import Sequence

import numpy as np


def global_batches(indices: Sequence[int], batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """Shuffled global batches of an epoch; the last may be smaller."""
    order = np.random.default_rng([seed, epoch]).permutation(len(indices))
    shuffled = [indices[place] for place in order]
    return [shuffled[start : start + batch_size] for start in range(0, len(shuffled), batch_size)]


def deal(indices: Sequence[int], lengths: Sequence[int], world_size: int) -> list[list[int]]:
    """Deal bags to ranks, longest first to the rank with the fewest instances.

    A rank may get no bag.

    Args:
        indices: of the bags to deal.
        lengths: instances of every bag, by index.
        world_size: number of ranks.
    """
    indices_of_rank: list[list[int]] = [[] for _ in range(world_size)]
    instances_of_rank = [0] * world_size
    for index in sorted(indices, key=lambda i: (-lengths[i], i)):
        rank = instances_of_rank.index(min(instances_of_rank))
        indices_of_rank[rank].append(index)
        instances_of_rank[rank] += lengths[index]
    return indices_of_rank


def micro_batches(indices: Sequence[int], lengths: Sequence[int], max_instances: int) -> list[list[int]]:
    """Group consecutive bags into micro-batches of at most ``max_instances``.

    A larger bag is a micro-batch of its own.

    Args:
        indices: of the bags to group.
        lengths: instances of every bag, by index.
        max_instances: of one micro-batch.
    """
    runs: list[list[int]] = []
    instances = 0
    for index in indices:
        if runs and instances + lengths[index] <= max_instances:
            runs[-1].append(index)
            instances += lengths[index]
        else:
            runs.append([index])
            instances = lengths[index]
    return runs
