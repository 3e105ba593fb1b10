"""Lists of the best instances of a bag, the best first.

Summaries of poolings are made of them. Of equal keys the instance that stands earlier in the bag is better. Every
column of keys has its own list.

Axes: instance, bag, rank (place in a list), column.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from milcore.mil.bags.segments import Segments

# position of an entry that no instance fills, behind every instance of a bag
NOWHERE = torch.iinfo(torch.int64).max

Place = tuple[Int[Tensor, " entry"], Int[Tensor, " entry"]]


def best_entries(
    keys: Float[Tensor, "instance column"], segments: Segments, length: int
) -> tuple[Place, Int[Tensor, "entry column"]]:
    """Bag and rank of the entries that instances fill, and their rows.

    Args:
        keys: by which the largest are the best.
        segments: of the instances.
        length: of a list; a bag of fewer instances fills that many entries.
    """
    falling = keys.detach().argsort(dim=0, descending=True, stable=True)
    order = falling.gather(0, segments.bag[falling].argsort(dim=0, stable=True))
    start = torch.searchsorted(segments.bag, torch.arange(segments.bags, device=keys.device))
    rank = torch.arange(len(keys), device=keys.device) - start[segments.bag]
    entries = rank < length
    return (segments.bag[entries], rank[entries]), order[entries]


def lists_of(
    values: Float[Tensor, "entry ..."], place: Place, bags: int, length: int, empty: float
) -> Float[Tensor, "bag rank ..."]:
    """Lists with a value at each entry that an instance fills."""
    return values.new_full((bags, length, *values.shape[1:]), empty).index_put(place, values)


def positions_of(
    rows: Int[Tensor, "entry column"], place: Place, segments: Segments, length: int
) -> Int[Tensor, "bag rank column"]:
    """Lists of the positions in their bags of these rows."""
    shape = segments.bags, length, rows.shape[1]
    return rows.new_full(shape, NOWHERE).index_put(place, segments.position[rows])


def best_of_parts(
    keys: Sequence[Float[Tensor, "bag rank column"]], positions: Sequence[Int[Tensor, "bag rank column"]]
) -> Int[Tensor, "bag rank column"]:
    """Places of the best among the lists of two parts after one another.

    They are as many as a list has.

    Args:
        keys: of both parts.
        positions: of both parts.
    """
    key, position = torch.cat(list(keys), dim=1), torch.cat(list(positions), dim=1)
    earliest = position.argsort(dim=1)
    order = key.detach().gather(1, earliest).argsort(dim=1, descending=True, stable=True)
    return earliest.gather(1, order)[:, : keys[0].shape[1]]
