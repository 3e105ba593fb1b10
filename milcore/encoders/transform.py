"""Input transform of encoders: resampling and normalisation of patches, and a scale check.

Patches are resampled as a whole, never cropped: the field of view stays the same and only um/px change, from ``mpp`` to
``mpp * patch_px / input_px``. A scale more than a factor of ``SCALE_LIMIT`` from that of training is refused.

Axes: patch, channel, height, width.
"""

import math
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor
from torch.nn import functional

from milcore.encoders.spec import Triple
from milcore.errors import StoreError

SCALE_LIMIT = 1.25
IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
IMAGENET_STD: Triple = (0.229, 0.224, 0.225)


class Transform(NamedTuple):
    """``(resample(x) / 255 - mean) / std``.

    Args:
        input_px: edge of the network's input; None takes patches as they are.
        mean: of the channels, in 0 to 1.
        std: of the channels, in 0 to 1.
        resample: ``bilinear`` with antialiasing, rounded to whole levels as Pillow does; or ``area``.
        mpp: um/px that the network was trained at, one or several; empty for any.
    """

    input_px: int | None
    mean: Triple = IMAGENET_MEAN
    std: Triple = IMAGENET_STD
    resample: Literal["bilinear", "area"] = "bilinear"
    mpp: tuple[float, ...] = ()

    def __str__(self) -> str:
        kind = "area" if self.resample == "area" else "bilinear in whole levels"
        resampled = "as stored" if self.input_px is None else f"{kind} to {self.input_px} px"
        mean, std = ("/".join(f"{value:.6g}" for value in triple) for triple in (self.mean, self.std))
        return f"{resampled}; (x / 255 - {mean}) / {std}"

    def __call__(self, patches: UInt8[Tensor, "patch height width 3"]) -> Float[Tensor, "patch 3 height2 width2"]:
        """The network's input, channels-last in memory as patches are."""
        pixels = self._resampled(patches)
        # by whole rows: along the three channels alone there is nothing to vectorise
        mean, std = (pixels.new_tensor(triple).mul_(255.0).repeat(pixels.shape[2]) for triple in (self.mean, self.std))
        return pixels.flatten(2).sub(mean).div_(std).reshape(pixels.shape).permute(0, 3, 1, 2)

    def _resampled(self, patches: UInt8[Tensor, "patch height width 3"]) -> Float[Tensor, "patch height2 width2 3"]:
        height, width, edge = patches.shape[1], patches.shape[2], self.input_px
        if edge is None or (height, width) == (edge, edge):
            return patches.float()
        if self.resample == "area":
            if height == width == edge + math.gcd(edge, width):
                return means_of_neighbours(patches.float(), edge)
            pixels = functional.adaptive_avg_pool2d(patches.permute(0, 3, 1, 2).float(), edge)
        else:
            pixels = bilinear(patches.permute(0, 3, 1, 2), edge)
        return pixels.permute(0, 2, 3, 1).float()

    def check_scale(self, slide_id: str, patch_px: int, patch_mpp: float | None) -> float | None:
        """um/px of a slide's patches at the network's input.

        None where the scale of the patches is unknown and the network takes any.

        Raises:
            StoreError: the scale is unknown, or too far from those of training.
        """
        expected = " or ".join(f"{mpp:g}" for mpp in self.mpp)
        input_px = self.input_px or patch_px
        if patch_mpp is None:
            if self.mpp:
                raise StoreError(
                    f"slide {slide_id!r}: expected {expected} um/px for the encoder, got patches of unknown um/px; "
                    "give the slides' mpp in the manifest, or add ,mpp=any to the encoder to take patches as they are"
                )
            return None
        input_mpp = float(patch_mpp) * patch_px / input_px
        if self.mpp and not any(1 / SCALE_LIMIT <= input_mpp / mpp <= SCALE_LIMIT for mpp in self.mpp):
            raise StoreError(
                f"slide {slide_id!r}: expected {expected} um/px for the encoder, got {input_mpp:.3g} um/px from "
                f"patches of {patch_px} px at {patch_mpp:g} um/px, resampled to {input_px} px; allowed: a factor of "
                f"{SCALE_LIMIT:g}; ingest with --mpp {self.mpp[0]:g} --patch-size {input_px}, or add ,mpp=any to the "
                "encoder"
            )
        return input_mpp


def bilinear(
    patches: UInt8[Tensor, "patch channel height width"], edge: int
) -> Shaped[Tensor, "patch channel edge edge"]:
    """Bilinear resampling with antialiasing; u1 patches are rounded to whole levels.

    u1 is resampled in integers on a CPU (ten times faster); elsewhere the result is within one level of that.
    """
    integers = patches.dtype == torch.uint8 and patches.device.type == "cpu"
    pixels = functional.interpolate(
        patches if integers else patches.float(), size=(edge, edge), mode="bilinear", antialias=True
    )
    return pixels if integers or patches.dtype != torch.uint8 else pixels.round()


def means_of_neighbours(pixels: Float[Tensor, "patch height width 3"], edge: int) -> Float[Tensor, "patch edge edge 3"]:
    """Fast area resampling where every k px become k - 1.

    For example 256 px to 224 px, with k = 8. Every new pixel overlaps two old ones in each direction, and area
    resampling weighs them equally. The result is that of general area resampling, ten times faster.

    Args:
        pixels: squares of edge p = k g.
        edge: (k - 1) g.
    """
    count, old = pixels.shape[:2]
    periods = old - edge
    rows = pixels.reshape(count, periods, old // periods, old * 3)
    rows = rows[:, :, :-1] + rows[:, :, 1:]
    columns = rows.view(count, edge, periods, old // periods * 3)
    columns = columns[..., :-3] + columns[..., 3:]
    return columns.reshape(count, edge, edge, 3).mul_(0.25)
