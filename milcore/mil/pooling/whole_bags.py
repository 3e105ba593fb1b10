"""Instances of whole bags, of all chunks and ranks, in order.

For poolings that are no monoid: every rank has all embeddings of a bag and pools it as a whole. Only the embeddings are
computed in chunks, and recomputed where their activations exceed the memory budget.

Axes: instance, bag, value, key (bag, slide, y, x, position).
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from milcore.errors import InputError
from milcore.mil.bags.batch import BagBatch, Chunk
from milcore.mil.pooling.streaming import ChunkPlan, gather_rows, lift_chunks


class WholeBag(NamedTuple):
    """A bag in the order of (slide, y, x).

    Args:
        values: of its instances.
        slides: instances of each slide.
    """

    values: Float[Tensor, "instance value"]
    slides: list[int]


class WholeBags(NamedTuple):
    """Whole bags of a batch.

    Args:
        bags: one after another.
        rows: of the batch, for each instance of the bags; of several ranks the rows of all, rank after rank.
    """

    bags: list[WholeBag]
    rows: Int[Tensor, " instance"]


def whole_bags(lift: Callable[[Chunk], Float[Tensor, "instance value"]], batch: BagBatch, plan: ChunkPlan) -> WholeBags:
    """Values of the instances of whole bags.

    Args:
        lift: from a chunk to the values of its instances; deterministic.
        batch: read chunk by chunk; oversized and with gradients, twice.
        plan: of the chunks.

    Raises:
        InputError: the batch has no places.
    """
    values, keys = torch.cat(lift_chunks(lift, batch, plan)), order_keys(batch)
    if batch.split_over_ranks:
        values, keys = gather_rows(values), gather_rows(keys.to(values.device)).cpu()
    order = np.lexsort(keys.t().numpy()[::-1])
    rows = torch.from_numpy(order)
    bag, slide = keys[rows, :2].t().to(torch.int64)
    _, lengths = torch.unique_consecutive(bag, return_counts=True)
    in_order = torch.split(values[rows.to(values.device)], lengths.tolist())
    of_bags = zip(in_order, torch.split(slide, lengths.tolist()), strict=True)
    bags = [
        WholeBag(each, torch.unique_consecutive(of_bag, return_counts=True)[1].tolist()) for each, of_bag in of_bags
    ]
    return WholeBags(bags, rows)


def order_keys(batch: BagBatch) -> Float[Tensor, "instance key"]:
    """Keys by which the rows of a batch are ordered, the first one first."""
    if batch.places is None:
        raise InputError(
            "pooling: expected places of the instances with a pooling that reads them, got bags without; allowed: "
            "stores with coords, or places in Bags.from_arrays; take another pooling or give places"
        )
    bag = torch.repeat_interleave(torch.arange(len(batch.lengths)), torch.tensor(batch.lengths))
    return torch.cat([bag[:, None].double(), batch.places, batch.position[:, None].double()], dim=1)
