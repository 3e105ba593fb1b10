"""The table of presets agrees with the networks' own configurations, as far as they can be built without weights."""

from pathlib import Path
from typing import Any

import pytest
import torch

from milcore.config import PROGRAM_ENCODERS
from milcore.encoders.networks.resnet import TruncatedResNet50
from milcore.encoders.networks.vit import VisionTransformer, VitShape
from milcore.encoders.presets import PRESETS

ROOT = Path(__file__).resolve().parents[2]

# published configurations: (width, depth, patch edge, registers, inner width of the MLP, gated, prefix has places) and
# the millions of parameters their authors give
VITS: dict[str, tuple[int, int, int, int, int, bool, bool, float]] = {
    "uni": (1024, 24, 16, 0, 4096, False, True, 303.4),
    "uni2-h": (1536, 24, 14, 8, 8192, True, False, 681.4),
    "virchow": (1280, 32, 14, 0, 6832, True, True, 631.2),
    "virchow2": (1280, 32, 14, 4, 6832, True, True, 631.2),
    "h-optimus-0": (1536, 40, 14, 4, 8192, True, False, 1134.8),
    "h-optimus-1": (1536, 40, 14, 4, 8192, True, False, 1134.8),
    "h0-mini": (768, 12, 14, 4, 4096, True, False, 85.7),
    "gigapath": (1536, 40, 16, 0, 8192, True, True, 1134.9),
}
HF: dict[str, tuple[str, dict[str, Any], float]] = {
    "phikon": ("ViT", {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12}, 85.8),
    "phikon-v2": (
        "Dinov2",
        {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "patch_size": 16, "image_size": 224},
        303.4,
    ),
    "midnight": (
        "Dinov2",
        {"hidden_size": 1536, "num_hidden_layers": 40, "num_attention_heads": 24, "patch_size": 14, "image_size": 224,
         "use_swiglu_ffn": True},
        1136.5,
    ),
}  # fmt: skip


def width_of(tokens: str, width: int) -> int:
    return width * len(tokens.split("+"))


def millions(network: torch.nn.Module) -> float:
    return sum(each.numel() for each in network.parameters()) / 1e6


@pytest.mark.parametrize("name", VITS)
def test_a_vision_transformer_has_the_preset_s_width_input_and_published_size(name: str) -> None:
    width, depth, patch_px, registers, inner, gated, everywhere, parameters = VITS[name]
    preset = PRESETS[name]
    assert preset.input_px % patch_px == 0
    patches = (preset.input_px // patch_px) ** 2
    positions = patches + (1 + registers if everywhere else 0)
    with torch.device("meta"):
        network = VisionTransformer(
            VitShape(width, depth, preset.heads, patch_px, positions, patches, registers, inner, gated, scaled=True)
        )
    assert millions(network) == pytest.approx(parameters, rel=5e-3)
    tokens = network(torch.zeros(1, 3, preset.input_px, preset.input_px, device="meta"))
    assert tokens.shape == (1, 1 + registers + patches, width)
    assert width_of(preset.tokens, width) == preset.width
    state = network.state_dict()
    assert VitShape.of(state, preset.heads, preset.input_px).positions == positions


@pytest.mark.parametrize("name", HF)
def test_a_network_of_transformers_has_the_preset_s_width_input_and_published_size(name: str) -> None:
    transformers = pytest.importorskip("transformers", reason="the extra hf is not installed")
    kind, sizes, parameters = HF[name]
    preset = PRESETS[name]
    config = getattr(transformers, f"{kind}Config")(**sizes)
    with torch.device("meta"):
        network = getattr(transformers, f"{kind}Model")(config)
    assert preset.input_px == config.image_size
    hidden = network(pixel_values=torch.zeros(1, 3, preset.input_px, preset.input_px, device="meta")).last_hidden_state
    assert width_of(preset.tokens, hidden.shape[2]) == preset.width
    assert millions(network) == pytest.approx(parameters, rel=1e-2)


def test_resnet50_up_to_its_third_stage_has_the_preset_s_width() -> None:
    """torchvision's whole one has 25,557,032 parameters, of which stage 4 has 14,964,736 and the head 2,049,000."""
    with torch.device("meta"):
        network = TruncatedResNet50()
    preset = PRESETS["resnet50"]
    pixels = torch.zeros(1, 3, preset.input_px, preset.input_px, device="meta")
    assert network(pixels).shape == (1, preset.width)
    assert sum(each.numel() for each in network.parameters()) == 25_557_032 - 14_964_736 - 2_049_000


def test_every_preset_says_whose_it_is_and_the_page_of_encoders_repeats_it() -> None:
    page = (ROOT / "docs/encoders.md").read_text()
    for name, preset in PRESETS.items():
        assert preset.licence
        assert preset.source
        mpp = ", ".join(f"{value:g}" for value in sorted(preset.mpp)) or "any"
        gated = "yes" if preset.gated else "no"
        place = f"[{preset.repository}]({preset.page})" if preset.repository else "packaged"
        terms = f"{preset.licence} | {gated} | {preset.source}"
        row = f"| `{name}` | {place} | {preset.input_px} px, {mpp} | {preset.width} | {terms} |"
        assert row in page, row


def test_the_encoders_that_are_programs_are_those_of_the_torchscript_loader() -> None:
    assert set(PROGRAM_ENCODERS) == {"torchscript"} | {k for k, v in PRESETS.items() if v.loader == "torchscript"}
