"""Patch flipping: predicted probability while instances are removed by attention rank.

If the prediction rests on the attended instances, removing the most attended ones first lowers the probability of the
predicted class faster than removing random ones, and removing the least attended ones first hardly changes it.
Instances are left out, not painted over, so the model sees no artificial patch. A bag is cut into twenty blocks by
rank; the summary of the rest after k blocks is a merge of the other blocks' summaries, so a curve costs one pass over
the bag. A pooling of two passes merges so in its first; its second takes every rest anew, as does one of whole bags.

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
from milcore.mil.pooling.protocol import Monoid, Summary, TwoPassPooling, WholeBagPooling
from milcore.mil.pooling.streaming import concatenate

STEPS = 20
RANDOM_ORDERS = 5
REMOVED = np.arange(STEPS) / STEPS


class Flipping(NamedTuple):
    """Probability of the predicted class after a share ``REMOVED`` of the instances is removed.

    Args:
        most: most attended instances removed first.
        least: least attended instances removed first.
        random: mean over random orders.
    """

    most: Float[np.ndarray, " step"]
    least: Float[np.ndarray, " step"]
    random: Float[np.ndarray, " step"]

    @property
    def area(self) -> float:
        """Mean of ``random - most``.

        Above 0 if the attended instances decide, 0 if attention is noise.
        """
        return float((self.random - self.most).mean())


@torch.no_grad()
def flip(
    models: Sequence[MILModel], bag: Bag, attention: Float[np.ndarray, " instance"], label: int, seed: int
) -> Flipping:
    """Patch-flipping curves of one bag.

    Args:
        models: of one run, whose mean probability is followed.
        bag: read in chunks.
        attention: one weight per instance; among equals the order is drawn.
        label: the class whose probability is followed.
        seed: of the random orders, with the bag's id.
    """
    orders = _orders(attention, bag.bag_id, seed)
    steps = min(STEPS, len(attention))
    blocks = np.stack([_blocks(order, steps) for order in orders])
    curves = np.mean([_curves(model, bag, blocks, steps, label) for model in models], axis=0)
    resampled = [np.interp(REMOVED, np.arange(steps) / steps, curve) for curve in curves]
    return Flipping(resampled[0], resampled[1], np.mean(resampled[2:], axis=0))


def mean_flipping(flippings: Sequence[Flipping]) -> Flipping:
    """The mean curves of several bags."""
    return Flipping(*(np.mean(curves, axis=0) for curves in zip(*flippings, strict=True)))


def _orders(attention: Float[np.ndarray, " instance"], bag_id: str, seed: int) -> list[Int[np.ndarray, " instance"]]:
    """Orders of removal: most attended first, least attended first, and random ones."""
    random = np.random.default_rng([seed, zlib.crc32(bag_id.encode())])
    permutation = random.permutation(len(attention))
    most = permutation[np.argsort(-attention[permutation], kind="stable")]
    return [most, most[::-1], *(random.permutation(len(attention)) for _ in range(RANDOM_ORDERS))]


def _blocks(order: Int[np.ndarray, " instance"], steps: int) -> Int[np.ndarray, " instance"]:
    """Block index of each instance; block 0 is removed first."""
    block = np.empty(len(order), np.int64)
    block[order] = np.arange(len(order)) * steps // len(order)
    return block


def _curves(
    model: MILModel, bag: Bag, blocks: Int[np.ndarray, "order instance"], steps: int, label: int
) -> Float[np.ndarray, "order step"]:
    batch, pooling = pack([bag], [0]), model.pooling
    if isinstance(pooling, WholeBagPooling):
        stays = (torch.from_numpy(block >= step) for block in blocks for step in range(steps))
        output = model.outputs_of_subsets(pooling, batch, stays, model.chunk_plan(batch))
        return output[:, label].double().exp().cpu().numpy().reshape(len(blocks), steps)
    if isinstance(pooling, TwoPassPooling):
        firsts = _remainders(model, pooling.first, batch, blocks, steps)
        remainders = _second_passes(model, pooling, batch, blocks, firsts)
    else:
        remainders = _remainders(model, pooling, batch, blocks, steps)
    return np.stack([model.output(summary)[:, label].double().exp().cpu().numpy() for summary in remainders])


def _remainders(
    model: MILModel, monoid: Monoid, batch: BagBatch, blocks: Int[np.ndarray, "order instance"], steps: int
) -> list[Summary]:
    """Summaries of the remainder at each step, for each order."""
    orders = []
    for summaries in _block_summaries(model, monoid, batch, blocks, steps):
        remainders = list(itertools.accumulate(reversed(summaries), monoid.merge))[::-1]
        orders.append(concatenate(remainders))
    return orders


def _second_passes(
    model: MILModel,
    pooling: TwoPassPooling,
    batch: BagBatch,
    blocks: Int[np.ndarray, "order instance"],
    firsts: list[Summary],
) -> list[Summary]:
    """The same of a second pass, which takes every remainder anew.

    Each remainder has its own summary of the first pass.
    """
    parts: list[list[list[Summary]]] = [[[] for _ in first[0]] for first in firsts]
    for lifted in model.lift_chunks(batch):
        position = batch.position[lifted.chunk.rows]
        for of_order, first, block in zip(parts, firsts, blocks[:, lifted.chunk.rows], strict=True):
            for step, of_step in enumerate(of_order):
                rows = torch.from_numpy(np.flatnonzero(block >= step))
                if len(rows):
                    segments = Segments.of(np.array([len(rows)]), position[rows], batch.longest)
                    segments, rows = segments.to(lifted.values.device), rows.to(lifted.values.device)
                    of_remainder = tuple(each[step : step + 1] for each in first)
                    taken = pooling.first.condition(lifted.scores[rows], lifted.values[rows], of_remainder, segments)
                    of_step.append(pooling.lift(*taken, segments))
    return [concatenate([functools.reduce(pooling.merge, of_step) for of_step in of_order]) for of_order in parts]


def _block_summaries(
    model: MILModel, monoid: Monoid, batch: BagBatch, blocks: Int[np.ndarray, "order instance"], steps: int
) -> list[list[Summary]]:
    """Summary of each block, for each order."""
    chunk_summaries: list[list[list[Summary]]] = [[[] for _ in range(steps)] for _ in blocks]
    for lifted in model.lift_chunks(batch):
        for order, block in enumerate(blocks[:, lifted.chunk.rows]):
            block_indices, counts = np.unique(block, return_counts=True)
            rows = torch.from_numpy(np.argsort(block, kind="stable"))
            segments = Segments.of(counts, batch.position[lifted.chunk.rows][rows], batch.longest)
            segments, rows = segments.to(lifted.values.device), rows.to(lifted.values.device)
            summary = monoid.lift(lifted.scores[rows], lifted.values[rows], segments)
            for k, index in enumerate(block_indices):
                chunk_summaries[order][index].append(tuple(tensor[k : k + 1] for tensor in summary))
    return [[functools.reduce(monoid.merge, block) for block in blocks] for blocks in chunk_summaries]


def normalised_entropy(attention: Float[np.ndarray, " instance"]) -> float:
    """Entropy of attention over the largest possible, 0 to 1.

    ``-sum a log a / log n``: 1 if all instances weigh the same, 0 if one has all weight; NaN for one instance.
    """
    if len(attention) < 2:
        return math.nan
    share = attention[attention > 0] / attention.sum()
    return float(-(share * np.log(share)).sum() / math.log(len(attention)))
