"""What stands between a stored patch and a network: resampling to its input, normalisation, and whether the scale fits.

Patches are resampled as a whole, never cropped: what they show stays the same and only um/px change, from ``mpp`` to
``mpp * patch_px / input_px``. More than ``SCALE_LIMIT`` beside what the network was trained at is refused.

Axes: patch, channel, height, width.
"""

from typing import Any, Literal, NamedTuple

from jaxtyping import Float, UInt8
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
        input_px: edge the network takes; None takes patches as they are.
        mean: of the channels, in 0 to 1.
        std: of the channels, in 0 to 1.
        resample: ``bilinear`` with antialiasing, or ``area``.
        mpp: um/px the network was trained at, several of them or none for any.
    """

    input_px: int | None
    mean: Triple = IMAGENET_MEAN
    std: Triple = IMAGENET_STD
    resample: Literal["bilinear", "area"] = "bilinear"
    mpp: tuple[float, ...] = ()

    def __str__(self) -> str:
        resampled = "as stored" if self.input_px is None else f"{self.resample} to {self.input_px} px"
        mean, std = ("/".join(f"{value:.6g}" for value in triple) for triple in (self.mean, self.std))
        return f"{resampled}; (x / 255 - {mean}) / {std}"

    def __call__(self, patches: UInt8[Tensor, "patch height width 3"]) -> Float[Tensor, "patch 3 height2 width2"]:
        """The network's input, channels-last in memory as patches are."""
        pixels = patches.permute(0, 3, 1, 2).float()
        if self.input_px is not None and pixels.shape[2:] != (self.input_px, self.input_px):
            edges = (self.input_px, self.input_px)
            area = self.resample == "area"
            pixels = functional.interpolate(
                pixels, size=edges, mode=self.resample, align_corners=None if area else False, antialias=not area
            )
        mean, std = (pixels.new_tensor(triple).mul_(255.0).view(1, 3, 1, 1) for triple in (self.mean, self.std))
        return (pixels - mean) / std

    def check_scale(self, slide_id: str, patch_px: int, attrs: dict[str, Any]) -> float | None:
        """um/px that the network will see of a slide; None where the slide does not say and any will do.

        Raises:
            StoreError: they are not known, or too far from those it was trained at; the numbers.
        """
        stored = (attrs.get("mpp") or {}).get("patch")
        expected = " or ".join(f"{mpp:g}" for mpp in self.mpp)
        input_px = self.input_px or patch_px
        if stored is None:
            if self.mpp:
                raise StoreError(
                    f"slide {slide_id!r} does not say its um/px, and the encoder expects {expected}; give the slides' "
                    "mpp in the manifest, or add ,mpp=any to the encoder to take patches as they are"
                )
            return None
        seen = float(stored) * patch_px / input_px
        if self.mpp and not any(1 / SCALE_LIMIT <= seen / mpp <= SCALE_LIMIT for mpp in self.mpp):
            raise StoreError(
                f"slide {slide_id!r}: patches of {patch_px} px at {stored:g} um/px, resampled to {input_px} px, show "
                f"{seen:.3g} um/px; the encoder expects {expected} (allowed: a factor of {SCALE_LIMIT:g}); ingest with "
                f"--mpp {self.mpp[0]:g} --patch-size {input_px}, or add ,mpp=any to the encoder"
            )
        return seen
