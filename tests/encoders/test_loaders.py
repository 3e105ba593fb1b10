"""Each kind of encoder, loaded from a small model made here, gives the features of the model called directly."""

import json
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from milcore.config import EncodeConfig, EncoderKind, EncoderName, parse_config
from milcore.encoders.extraction.encode import encode
from milcore.encoders.extraction.request import default_name, with_feature_name
from milcore.encoders.frozen import FrozenEncoder, digest_of_spec
from milcore.encoders.loaders import LOADERS
from milcore.encoders.networks.resnet import TruncatedResNet50
from milcore.encoders.networks.vit import VisionTransformer, VitShape
from milcore.encoders.presets import PRESETS
from milcore.encoders.spec import parse_spec
from milcore.encoders.transform import IMAGENET_MEAN, IMAGENET_STD
from milcore.errors import InputError
from milcore.runtime import storage
from tests.cohorts import write_store

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
CLOSE = {"atol": 1e-5, "rtol": 1e-5}
PX = 32


class Tiny(nn.Module):
    """Pictures to five features."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, kernel_size=4, stride=4)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.conv(pixels)).mean(dim=(2, 3))


@pytest.fixture
def patches() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (5, PX, PX, 3), dtype=np.uint8))


@pytest.fixture
def tiny() -> Tiny:
    torch.manual_seed(0)
    return Tiny().eval()


def loaded(spec: str) -> FrozenEncoder:
    return FrozenEncoder(parse_spec(spec), torch.device("cpu"))


def normalised(patches: torch.Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> torch.Tensor:
    pixels = patches.permute(0, 3, 1, 2).double() / 255
    return ((pixels - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)).float()


def by_hand(network: nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return network(pixels)


def test_config_names_are_the_tables_keys() -> None:
    assert set(get_args(EncoderName)) == set(PRESETS)
    assert set(get_args(EncoderKind)) <= set(LOADERS)
    assert {preset.loader for preset in PRESETS.values()} <= set(LOADERS)


def test_torchscript(tmp_path: Path, patches: torch.Tensor, tiny: Tiny) -> None:
    file = tmp_path / "tiny.pt"
    torch.jit.script(tiny).save(str(file))
    encoder = loaded(f"torchscript:{file}")
    assert encoder.width == 5
    expected = by_hand(tiny, normalised(patches, IMAGENET_MEAN, IMAGENET_STD))
    torch.testing.assert_close(encoder(patches), expected, **CLOSE)
    other = loaded(f"torchscript:{file},mean=0.5/0.5/0.5,std=0.5/0.25/0.5")
    expected = by_hand(tiny, normalised(patches, (0.5, 0.5, 0.5), (0.5, 0.25, 0.5)))
    torch.testing.assert_close(other(patches), expected, **CLOSE)


@pytest.mark.parametrize(("precision", "step"), [("bf16", 2**-8), ("fp16", 2**-11)])
def test_half_precision_is_near_by_some_of_its_steps(
    tmp_path: Path, patches: torch.Tensor, tiny: Tiny, precision: str, step: float
) -> None:
    """Inputs, weights and outputs are rounded to the type's step; sums over the 48 products are kept in fp32."""
    file = tmp_path / "tiny.pt"
    torch.jit.script(tiny).save(str(file))
    exact, half = loaded(f"torchscript:{file}")(patches), loaded(f"torchscript:{file},precision={precision}")(patches)
    assert half.dtype == torch.float32
    assert not torch.equal(exact, half)
    torch.testing.assert_close(half, exact, atol=4 * step, rtol=4 * step)


# the exporter's own code is ahead of what it deprecates
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_onnx(tmp_path: Path, patches: torch.Tensor, tiny: Tiny) -> None:
    pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    pytest.importorskip("onnxscript", reason="torch exports to ONNX by onnxscript, which is not installed")
    file = tmp_path / "tiny.onnx"
    shapes = {"pixels": {0: torch.export.Dim("patch")}}
    torch.onnx.export(tiny, (torch.zeros(2, 3, PX, PX),), str(file), dynamic_shapes=shapes, verbose=False)
    encoder = loaded(f"onnx:{file}")
    assert (encoder.width, encoder.transform.input_px) == (5, PX)
    expected = by_hand(tiny, normalised(patches, IMAGENET_MEAN, IMAGENET_STD))
    torch.testing.assert_close(encoder(patches), expected, **CLOSE)
    with pytest.raises(InputError, match="export it in bf16"):
        loaded(f"onnx:{file},precision=bf16")
    store = write_store(str(tmp_path / "store"), slides=2)
    config = with_feature_name(EncodeConfig(encoder=f"onnx:{file}", patches_per_batch=4))
    assert config.name == f"onnx-{digest_of_spec(config.encoder)[:8]}"
    assert len(list(encode(store.uri, config))) == 2
    assert store.slide("s00").features(config.name).shape == (6, 5)


@pytest.fixture
def tiny_vit(tmp_path: Path) -> Path:
    """A vision transformer of transformers, saved as the hub has them."""
    transformers = pytest.importorskip("transformers", reason="the extra hf is not installed")
    torch.manual_seed(0)
    sizes = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 16}
    model = transformers.ViTModel(transformers.ViTConfig(**sizes, image_size=PX, patch_size=8), add_pooling_layer=False)
    model.save_pretrained(tmp_path / "vit")
    described = {"image_mean": [0.6, 0.5, 0.4], "image_std": [0.3, 0.2, 0.1], "size": {"height": PX, "width": PX}}
    (tmp_path / "vit" / "preprocessor_config.json").write_text(json.dumps(described))
    return tmp_path / "vit"


def test_hf_with_each_choice_of_tokens(tiny_vit: Path, patches: torch.Tensor) -> None:
    model = pytest.importorskip("transformers").AutoModel.from_pretrained(tiny_vit, add_pooling_layer=False).eval()
    with torch.inference_mode():
        pixels = normalised(patches, (0.6, 0.5, 0.4), (0.3, 0.2, 0.1))
        hidden = model(pixel_values=pixels).last_hidden_state
    assert hidden.shape == (5, 17, 12)
    expected = {"cls": hidden[:, 0], "mean": hidden[:, 1:].mean(dim=1)}
    expected["cls+mean"] = torch.cat([expected["cls"], expected["mean"]], dim=1)
    for tokens, features in expected.items():
        encoder = loaded(f"hf:{tiny_vit},tokens={tokens}")
        assert encoder.width == features.shape[1]
        torch.testing.assert_close(encoder(patches), features, **CLOSE)
    assert str(encoder.transform).startswith(f"bilinear in whole levels to {PX} px; (x / 255 - 0.6/0.5/0.4)")


def test_a_preset_takes_a_copy_of_its_weights_and_holds_them_to_its_width(tiny_vit: Path) -> None:
    with pytest.raises(InputError, match="expected 768 features, got 12"):
        loaded(f"phikon@{tiny_vit},input_px={PX}")


@pytest.mark.parametrize("kind", ["dinov2", "registers"])
def test_the_vision_transformer_is_that_of_transformers(tmp_path: Path, patches: torch.Tensor, kind: str) -> None:
    """An independent implementation's random weights under timm's names; gated MLP, scaled branches, registers."""
    transformers = pytest.importorskip("transformers", reason="the extra hf is not installed")
    torch.manual_seed(0)
    sizes = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": PX, "patch_size": 8}
    if kind == "dinov2":
        model = transformers.Dinov2Model(transformers.Dinov2Config(**sizes, layer_norm_eps=1e-6, use_swiglu_ffn=False))
    else:
        config = transformers.Dinov2WithRegistersConfig(
            **sizes, layer_norm_eps=1e-6, use_swiglu_ffn=True, num_register_tokens=3
        )
        model = transformers.Dinov2WithRegistersModel(config)
    model = model.eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    state = under_timm_s_names(model.state_dict(), fold_class_position=kind == "registers")
    file = tmp_path / "vit.safetensors"
    safetensors.torch.save_file({name: value.contiguous() for name, value in state.items()}, file)
    shape = VitShape.of(state, 3, PX)
    assert (shape.gated, shape.scaled, shape.registers) == (kind == "registers", True, 3 * (kind == "registers"))
    ours = VisionTransformer(shape).eval()
    ours.load_state_dict(state)
    pixels = normalised(patches, IMAGENET_MEAN, IMAGENET_STD)
    torch.testing.assert_close(by_hand(ours, pixels), by_hand(model, pixels).last_hidden_state, **CLOSE)


TIMMS = {
    "embeddings.cls_token": "cls_token",
    "embeddings.register_tokens": "reg_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "encoder.layer.": "blocks.",
    "attention.o_proj": "attn.proj",
    "layer_scale1.lambda1": "ls1.gamma",
    "layer_scale2.lambda1": "ls2.gamma",
    "mlp.down_proj": "mlp.fc2",
    "layernorm.": "norm.",
}
JOINED = {"attn.qkv": [f"attention.{part}_proj" for part in "qkv"], "mlp.fc1": ["mlp.gate_proj", "mlp.up_proj"]}


def under_timm_s_names(state: dict[str, torch.Tensor], *, fold_class_position: bool) -> dict[str, torch.Tensor]:
    """Weights of DINOv2 by transformers' names, renamed; the class token's place added to it where asked for."""
    timms = {}
    for name, value in state.items():
        renamed = name
        for theirs, timms_name in TIMMS.items():
            renamed = renamed.replace(theirs, timms_name)
        timms[renamed] = value
    for joined, parts in JOINED.items():
        for first in [name for name in timms if parts[0] in name]:
            values = [timms.pop(first.replace(parts[0], part)) for part in parts]
            timms[first.replace(parts[0], joined)] = torch.cat(values)
    del timms["embeddings.mask_token"]
    if fold_class_position:
        places = timms["pos_embed"]
        timms["cls_token"], timms["pos_embed"] = timms["cls_token"] + places[:, :1], places[:, 1:]
    return timms


def test_resnet50_is_cut_after_its_third_stage_and_takes_a_whole_one_s_weights(
    tmp_path: Path, patches: torch.Tensor
) -> None:
    torch.manual_seed(0)
    network = TruncatedResNet50().eval()
    whole = network.state_dict() | {"fc.weight": torch.zeros(1000, 2048), "layer4.0.conv1.weight": torch.zeros(1)}
    torch.save(whole, tmp_path / "resnet50.pth")
    encoder = loaded(f"resnet50@{tmp_path / 'resnet50.pth'},input_px={PX}")
    assert encoder.width == 1024
    expected = by_hand(network, normalised(patches, IMAGENET_MEAN, IMAGENET_STD))
    torch.testing.assert_close(encoder(patches), expected, **CLOSE)


def test_timm(tmp_path: Path, patches: torch.Tensor) -> None:
    try:
        import timm  # noqa: PLC0415 - where it imports
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"timm does not import here: {error}")
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0).eval()
    safetensors.torch.save_file(model.state_dict(), tmp_path / "model.safetensors")
    encoder = loaded(f"timm:vit_tiny_patch16_224@{tmp_path / 'model.safetensors'}")
    large = patches.repeat_interleave(7, 1).repeat_interleave(7, 2)
    described = timm.data.resolve_model_data_config(model)
    expected = by_hand(model, normalised(large, described["mean"], described["std"]))
    torch.testing.assert_close(encoder(large), expected, **CLOSE)


def test_weights_lie_on_s3_too(s3: str, tmp_path: Path, patches: torch.Tensor, tiny: Tiny) -> None:
    torch.jit.script(tiny).save(str(tmp_path / "tiny.pt"))
    storage.write_bytes(f"{s3}/encoders/tiny.pt", (tmp_path / "tiny.pt").read_bytes())
    here, there = loaded(f"torchscript:{tmp_path / 'tiny.pt'}"), loaded(f"torchscript:{s3}/encoders/tiny.pt")
    assert torch.equal(here(patches), there(patches))
    assert here.weights_digest == there.weights_digest == digest_of_spec(f"torchscript:{s3}/encoders/tiny.pt")


def test_a_pickle_that_runs_code_is_refused(tmp_path: Path) -> None:
    """weights_only: what a file would do on loading is not done."""

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (tmp_path / "ran",)

    torch.save({"conv1.weight": Evil()}, tmp_path / "resnet50.pth")
    with pytest.raises(InputError, match="expected a file of tensors only"):
        loaded(f"resnet50@{tmp_path / 'resnet50.pth'}")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("uniform", "allowed: a name"),
        ("uni@", "allowed: a name"),
        ("torchscript:", "torchscript:URI"),
        ("uni,px=3", "expected known options, got px"),
        ("uni,input_px=0", "above 0"),
        ("uni,mean=0.5", "three numbers"),
        ("uni,mpp=-1", "numbers separated by slashes, got .-1.; allowed: above 0"),
        ("uni,tokens=all", "cls, mean, cls.mean"),
        ("uni,precision=fp8", "fp32, bf16, fp16"),
    ],
)
def test_a_bad_spec_is_one_line_that_says_what_is_allowed(spec: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_spec(spec)


def test_config_refuses_what_is_no_encoder_before_anything_is_loaded() -> None:
    with pytest.raises(InputError, match=r"expected an encoder, got .*; allowed: efficientnet_lite0, "):
        parse_config(EncodeConfig, {"encoder": "uniform"})
    for spec in ("uni", "uni@s3://b/k", "uni,mpp=any", "onnx:s3://b/k"):
        assert parse_config(EncodeConfig, {"encoder": spec}).encoder == spec


def test_a_spec_is_taken_apart() -> None:
    spec = parse_spec("uni2-h@s3://b/a,b.bin,mpp=0.25/0.5,precision=bf16")
    assert (spec.name, spec.uri, spec.mpp, spec.precision) == ("uni2-h", "s3://b/a,b.bin", (0.25, 0.5), "bf16")
    assert not spec.is_bare_name
    assert parse_spec("uni").is_bare_name
    assert parse_spec("hf:owkin/phikon")[1:4] == ("hf", "owkin/phikon", None)
    assert parse_spec("hf:/models/phikon")[1:4] == ("hf", "", "/models/phikon")
    assert parse_spec("timm:resnet18.a1_in1k@w.safetensors")[1:4] == ("timm", "resnet18.a1_in1k", "w.safetensors")
    assert default_name("efficientnet_lite0") == "efficientnet_lite0"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("resnet50@nowhere.pth", "got nothing at nowhere.pth"),
        ("torchscript:{text}", "expected a TorchScript file, got text"),
        ("onnx:{text}", "expected an ONNX network, got text"),
        ("hf:{folder}", "expected a network that transformers can load, got"),
        ("uni@{tensors}", "timm's names, got weights without cls_token"),
        ("resnet50@{tensors}", "expected the weights of this network, got others"),
        ("resnet50@{folder}", "expected one file of weights in .*, got 0"),
        ("conch", "trace its image tower"),
    ],
)
def test_a_file_that_is_something_else_is_one_line(tmp_path: Path, spec: str, message: str) -> None:
    for module in ("onnxruntime", "transformers"):
        pytest.importorskip(module, reason="an extra is not installed")
    (tmp_path / "text").write_text("nothing")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "README").write_text("nothing")
    safetensors.torch.save_file({"weight": torch.zeros(1)}, tmp_path / "tensors.safetensors")
    places = {"text": tmp_path / "text", "folder": tmp_path / "folder", "tensors": tmp_path / "tensors.safetensors"}
    with pytest.raises(InputError, match=message):
        loaded(spec.format(**places))


def test_a_hub_out_of_reach_is_reported_with_the_way_round(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    constants = pytest.importorskip("huggingface_hub.constants", reason="the extra hf is not installed")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError, match=r"MahmoodLab/UNI cannot be fetched .* give a copy of the weights as NAME@URI"):
        loaded("uni")
