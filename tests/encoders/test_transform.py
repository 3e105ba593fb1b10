"""Scale and normalisation: physical size is kept by rule, or refused with the numbers."""

import pytest
import torch

from milcore.encoders.transform import Transform
from milcore.errors import StoreError

HALF = (0.5, 0.5, 0.5)
UNI = Transform(224, mpp=(0.5,))


@pytest.mark.parametrize(
    ("patch_px", "mpp", "input_mpp"),
    [(224, 0.5, 0.5), (256, 0.5, 0.5714285714285714), (448, 0.25, 0.5), (196, 0.5, 0.4375)],
)
def test_um_per_px_at_the_network_s_input(patch_px: int, mpp: float, input_mpp: float) -> None:
    assert UNI.check_scale("s", patch_px, mpp) == pytest.approx(input_mpp)


@pytest.mark.parametrize(("patch_px", "mpp"), [(512, 0.5), (224, 0.25), (256, 1.0)])
def test_a_factor_above_the_limit_is_refused_with_the_numbers(patch_px: int, mpp: float) -> None:
    numbers = (
        rf"expected 0\.5 um/px .* got .* {patch_px} px at {mpp:g} um/px, resampled to 224 px; .*"
        r"--mpp 0\.5 --patch-size 224"
    )
    with pytest.raises(StoreError, match=numbers):
        UNI.check_scale("s", patch_px, mpp)
    assert UNI._replace(mpp=()).check_scale("s", patch_px, mpp) == pytest.approx(mpp * patch_px / 224)
    assert UNI._replace(mpp=(0.5, 0.25, 1.0, 2.0)).check_scale("s", patch_px, mpp) is not None


def test_a_slide_without_scale_suits_only_encoders_for_any() -> None:
    with pytest.raises(StoreError, match="got patches of unknown um/px"):
        UNI.check_scale("s", 224, None)
    assert Transform(224).check_scale("s", 224, None) is None


def test_normalisation_worked_by_hand() -> None:
    """(255 / 255 - 0.5) / 0.5 = 1 and (0 - 0.25) / 0.5 = -0.5; channels come first, nothing is resampled."""
    patches = torch.zeros(1, 2, 2, 3, dtype=torch.uint8)
    patches[..., 0] = 255
    pixels = Transform(None, (0.5, 0.25, 0.0), HALF)(patches)
    torch.testing.assert_close(pixels[0, :, 0, 0], torch.tensor([1.0, -0.5, 0.0]))
    assert pixels.shape == (1, 3, 2, 2)


@pytest.mark.parametrize("resample", ["bilinear", "area"])
def test_resampling_keeps_means_and_halves_by_averaging(resample: str) -> None:
    torch.manual_seed(0)
    patches = torch.randint(0, 256, (2, 8, 8, 3), dtype=torch.uint8)
    small = Transform(4, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), resample)(patches)  # type: ignore[arg-type]
    assert small.shape == (2, 3, 4, 4)
    flat = Transform(4, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), resample)(torch.full_like(patches, 51))  # type: ignore[arg-type]
    torch.testing.assert_close(flat, torch.full_like(flat, 0.2))
    if resample == "area":
        blocks = patches.float().view(2, 4, 2, 4, 2, 3).mean(dim=(2, 4)).permute(0, 3, 1, 2) / 255
        torch.testing.assert_close(small, blocks)


@pytest.mark.parametrize(("old", "new"), [(256, 224), (15, 14), (8, 7), (48, 32), (6, 3), (7, 5)])
def test_area_resampling_is_torch_s_to_the_bit(old: int, new: int) -> None:
    """The short way, where k px become k - 1 all along, and the long one."""
    patches = torch.randint(0, 256, (2, old, old, 3), dtype=torch.uint8)
    expected = torch.nn.functional.adaptive_avg_pool2d(patches.permute(0, 3, 1, 2).float(), new)
    resampled = Transform(new, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "area")(patches)
    assert torch.equal(resampled, expected / 255)
    assert resampled.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("old", "new"), [(256, 224), (32, 56)])
def test_bilinear_resampling_is_torch_s_in_fp32_up_to_a_level(old: int, new: int) -> None:
    patches = torch.randint(0, 256, (2, old, old, 3), dtype=torch.uint8)
    pixels = patches.permute(0, 3, 1, 2).float()
    expected = torch.nn.functional.interpolate(pixels, size=(new, new), mode="bilinear", antialias=True)
    resampled = Transform(new, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))(patches) * 255
    torch.testing.assert_close(resampled, resampled.round(), atol=1e-4, rtol=0.0)
    assert (resampled - expected).abs().max() <= 1.01
    assert (resampled - expected).mean().abs() < 0.1
