"""Dropout by counter-based random numbers, keyed by (seed, epoch, bag, instance).

The mask of an instance is therefore the same in every batch, chunk and world size. One 64-bit hash of an instance's key
gives eight columns their 8-bit numbers. The rate is therefore a multiple of 1/256 (the nearest to the one asked for),
and the scale ``1 / (1 - rate)`` is exact for it.

Axes: instance, bag, hidden (embedding width).
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int, Int8
from torch import Tensor

from milcore.mil.bags.segments import Segments

_LEVELS = 256
_COLUMNS_PER_HASH = 8
_BEYOND_COLUMNS = 1 << 32
_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)


class Mask(NamedTuple):
    """Dropout mask of the embeddings of a chunk.

    Args:
        numbers: uniform in -128 to 127; an entry is dropped where its number is below ``level - 128``.
        level: numbers out of 256 that drop an entry.
    """

    numbers: Int8[Tensor, "instance hidden"]
    level: int

    def apply_(self, values: Float[Tensor, "instance hidden"]) -> Float[Tensor, "instance hidden"]:
        """Zero the dropped entries in place; the others are not scaled."""
        # the backward of a threshold is the one fused pass "a where b > c, else 0"
        threshold = float(self.level - 129)
        torch.ops.aten.threshold_backward.grad_input(
            values, self.numbers.to(values.dtype), threshold, grad_input=values
        )
        return values


class Dropout(NamedTuple):
    """Rate and random key of dropout in one training pass.

    Args:
        seed: of the run.
        epoch: of the pass.
        rate: share of dropped entries, at least 0 and below 1.
    """

    seed: int
    epoch: int
    rate: float

    @property
    def level(self) -> int:
        """Numbers out of 256 equally likely ones that drop an entry."""
        return min(round(self.rate * _LEVELS), _LEVELS - 1)

    @property
    def scale(self) -> float:
        """Factor ``1 / (1 - level / 256)`` of the entries that stay."""
        return _LEVELS / (_LEVELS - self.level)

    def keys(self, bag_keys: Int[Tensor, " bag"]) -> Int[Tensor, " bag"]:
        """A random number per bag.

        Args:
            bag_keys: a number per bag that is the same in every batch.
        """
        return _mix(_mix(torch.tensor([self.seed * 0x9E3779B1 + self.epoch], device=bag_keys.device)) + bag_keys)

    def instance_keys(self, bag_keys: Int[Tensor, " bag"], segments: Segments) -> Int[Tensor, " instance"]:
        """A random number per instance.

        Args:
            bag_keys: a number per bag that is the same in every batch.
            segments: the instances; their places in the bag count, not their rows.
        """
        return _mix(self.keys(bag_keys)[segments.bag] + segments.position)

    def draw(self, bag_keys: Int[Tensor, " bag"], segments: Segments, hidden: int) -> Mask | None:
        """Draw the mask of dropped entries; None at rate 0.

        Args:
            bag_keys: as of ``keys``.
            segments: as of ``instance_keys``.
            hidden: width of the embeddings.
        """
        if self.level == 0:
            return None
        keys = self.instance_keys(bag_keys, segments)
        columns = torch.arange(-(-hidden // _COLUMNS_PER_HASH), device=keys.device)
        return Mask(_mix(keys[:, None] + columns).view(torch.int8)[:, :hidden], self.level)


def uniform(keys: Int[Tensor, " row"], count: int) -> Float[Tensor, "row count"]:
    """Uniform random numbers in 0 to 1 for every key, in steps of 2^-24.

    They are independent of the numbers that dropout derives from the same key.

    Args:
        keys: 64-bit.
        count: of numbers per key.
    """
    columns = torch.arange(_BEYOND_COLUMNS, _BEYOND_COLUMNS + count, device=keys.device)
    return _shift(_mix(keys[:, None] + columns), 40).float() / 2.0**24


class _Drop(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, numbers: Tensor, level: int) -> Tensor:
        ctx.save_for_backward(numbers)
        ctx.level = level
        return Mask(numbers, level).apply_(values.clone())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return Mask(ctx.saved_tensors[0], ctx.level).apply_(gradient.clone()), None, None


def drop(values: Float[Tensor, "instance hidden"], mask: Mask) -> Float[Tensor, "instance hidden"]:
    """The values without the dropped entries; the others are not scaled."""
    result: Tensor = _Drop.apply(values, *mask)  # type: ignore[no-untyped-call]
    return result


def _mix(keys: Int[Tensor, "..."]) -> Int[Tensor, "..."]:
    """Bijective 64-bit hash with wrapping arithmetic.

    Source: Steele et al. 2014, the finaliser of SplitMix64.
    """
    keys = keys + _GOLDEN
    keys.bitwise_xor_(_shift(keys, 30)).mul_(0xBF58476D1CE4E5B9 - (1 << 64))
    keys.bitwise_xor_(_shift(keys, 27)).mul_(0x94D049BB133111EB - (1 << 64))
    return keys.bitwise_xor_(_shift(keys, 31))


def _shift(keys: Int[Tensor, "..."], bits: int) -> Int[Tensor, "..."]:
    """Logical right shift; torch's own keeps the sign."""
    return (keys >> bits).bitwise_and_((1 << (64 - bits)) - 1)
