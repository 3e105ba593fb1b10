"""Patch flipping: does what attention weighs decide? Instances are taken out by rank, and the model is asked again.

If attention tells what the model relies on, taking out the most attended instances first lets the probability of the
called class fall faster than taking out random ones, and the least attended ones can go first without harm. Instances
are left out, not painted over, so no patch that never was is shown to the model. A bag is cut into twenty blocks by
rank; what is left after k blocks is a merge of the others' summaries, so a curve costs one pass over the bag.

Source: Samek et al. 2017, "Evaluating the visualization of what a deep neural network has learned"; for MIL, Hense et
al. 2024, "xMIL". Axis words: step, order, instance.
"""

import functools
import itertools
import math
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int

from milcore.mil.bags.batch import Bag, BagBatch, pack
from milcore.mil.bags.segments import Segments
from milcore.mil.model import MILModel
from milcore.mil.pooling.pooling import Summary

STEPS = 20
RANDOM_ORDERS = 5
REMOVED = np.arange(STEPS) / STEPS


class Flipping(NamedTuple):
    """Probability of the called class after a share ``REMOVED`` of the instances is gone, by who went first."""

    most: Float[np.ndarray, " step"]
    least: Float[np.ndarray, " step"]
    random: Float[np.ndarray, " step"]

    @property
    def area(self) -> float:
        """Mean of random minus most-attended-first: above 0 if attention finds what decides; 0 if it is noise."""
        return float((self.random - self.most).mean())


@torch.no_grad()
def flip(
    models: Sequence[MILModel], bag: Bag, attention: Float[np.ndarray, " instance"], label: int, seed: int
) -> Flipping:
    """The curves of one bag.

    Args:
        models: of one run, whose mean probability is followed.
        bag: walked over in chunks.
        attention: one weight per instance; among equals the order is drawn.
        label: the class whose probability is followed.
        seed: of the random orders, with the bag's id.
    """
    orders = _orders(attention, bag.bag_id, seed)
    steps = min(STEPS, len(attention))
    blocks = np.stack([_blocks(order, steps) for order in orders])
    curves = np.mean([_curves(model, bag, blocks, steps, label) for model in models], axis=0)
    at = [np.interp(REMOVED, np.arange(steps) / steps, curve) for curve in curves]
    return Flipping(at[0], at[1], np.mean(at[2:], axis=0))


def mean_flipping(found: Sequence[Flipping]) -> Flipping:
    """The mean curves of several bags."""
    return Flipping(*(np.mean(each, axis=0) for each in zip(*found, strict=True)))


def _orders(attention: Float[np.ndarray, " instance"], bag_id: str, seed: int) -> list[Int[np.ndarray, " instance"]]:
    """Most attended first, least attended first, and random ones."""
    random = np.random.default_rng([seed, zlib.crc32(bag_id.encode())])
    drawn = random.permutation(len(attention))
    most = drawn[np.argsort(-attention[drawn], kind="stable")]
    return [most, most[::-1], *(random.permutation(len(attention)) for _ in range(RANDOM_ORDERS))]


def _blocks(order: Int[np.ndarray, " instance"], steps: int) -> Int[np.ndarray, " instance"]:
    """The block of each instance: block 0 goes first."""
    block = np.empty(len(order), np.int64)
    block[order] = np.arange(len(order)) * steps // len(order)
    return block


def _curves(
    model: MILModel, bag: Bag, blocks: Int[np.ndarray, "order instance"], steps: int, label: int
) -> Float[np.ndarray, "order step"]:
    batch = pack([bag], [0])
    curves = []
    for summaries in _block_summaries(model, batch, blocks, steps):
        left = list(itertools.accumulate(reversed(summaries), model.pooling.merge))[::-1]
        whole = tuple(torch.cat(each) for each in zip(*left, strict=True))
        curves.append(model.log_prob(whole)[:, label].double().exp().cpu().numpy())
    return np.stack(curves)


def _block_summaries(
    model: MILModel, batch: BagBatch, blocks: Int[np.ndarray, "order instance"], steps: int
) -> list[list[Summary]]:
    """For each order the summary of each block."""
    walk, lift = model.chunk_plan(batch), model.lifter(batch.instances[:1].dtype, None)
    parts: list[list[list[Summary]]] = [[[] for _ in range(steps)] for _ in blocks]
    for start, stop in batch.spans(walk.rows):
        lifted = lift(batch.chunk(start, stop, walk.device))
        for order, block in enumerate(blocks[:, start:stop]):
            rows = np.argsort(block, kind="stable")
            present, counts = np.unique(block, return_counts=True)
            place = torch.from_numpy(rows)
            segments = Segments.of(counts, batch.position[start:stop][place]).to(walk.device)
            place = place.to(walk.device)
            summary = model.pooling.lift(lifted.scores[place], lifted.values[place], segments)
            for k, its in enumerate(present):
                parts[order][its].append(tuple(each[k : k + 1] for each in summary))
    return [[functools.reduce(model.pooling.merge, its) for its in order] for order in parts]


def normalised_entropy(attention: Float[np.ndarray, " instance"]) -> float:
    """``-sum a log a / log n``: 1 if every instance weighs the same, 0 if one has it all; NaN for one instance."""
    if len(attention) < 2:
        return math.nan
    share = attention[attention > 0] / attention.sum()
    return float(-(share * np.log(share)).sum() / math.log(len(attention)))
