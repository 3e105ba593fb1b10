"""Tensors alone or with places come back; what may run code when read is left unread."""

from pathlib import Path

import numpy as np
import pytest
import torch

from milcore.store.store import PatchStore
from tests.cohorts import rewrite_metadata
from tests.ingestion.imports.made import GRID, cut_short, features_of, import_files, write_h5, write_pt


def test_tensors_alone_or_with_places_come_back(tmp_path: Path) -> None:
    write_pt(tmp_path / "made" / "a.pt", features_of(0))
    write_pt(tmp_path / "made" / "b.pt", features_of(1), GRID, patch_size_level0=512)
    torch.save(torch.from_numpy(features_of(2)).bfloat16(), tmp_path / "made" / "c.pt")
    assert import_files(tmp_path, "pt", ("a,0", "b,1", "c,0"))["ok"] == ["a", "b", "c"]
    store = PatchStore(str(tmp_path / "store"))
    np.testing.assert_array_equal(store.slide("a").features("imported").read(0, 12), features_of(0).astype(np.float16))
    assert not store.slide("a").has_coords
    assert store.slide("b").coords.tolist() == GRID.tolist()
    assert store.slide("b").patch_size_level0 == 512.0
    np.testing.assert_allclose(store.slide("c").features("imported").read(0, 12), features_of(2), rtol=2**-7)


@pytest.mark.parametrize(
    ("values", "kept"),
    [
        (features_of(0), "float16"),
        # 1000 +- 0.05: float16 has steps of 0.5 there
        (1000 + 0.05 * features_of(1, 611, 3), "float32"),
        # beyond 65,504, which float16 holds at most
        (1e5 * features_of(2), "float32"),
        (np.full((12, 5), 100_000), "float32"),
        # the second half alone needs float32
        (np.concatenate([features_of(0), 1000 + 0.05 * features_of(1)], axis=1), "float32"),
        (np.full((12, 5), np.float64(1) / 3), "float32"),
        (np.full((12, 5), 0.25), "float16"),
    ],
    ids=["small", "offset", "large", "whole numbers", "a column", "constant", "exact constant"],
)
@pytest.mark.parametrize("kind", ["pt", "clam"])
def test_features_of_files_keep_their_values(tmp_path: Path, kind: str, values: np.ndarray, kept: str) -> None:
    """The type is that of the slide's own values, and is told; the rule is the one of npz and Parquet."""
    write = write_pt if kind == "pt" else write_h5
    suffix = "pt" if kind == "pt" else "h5"
    write(tmp_path / "made" / f"a.{suffix}", values, None)
    write(tmp_path / "made" / f"b.{suffix}", features_of(3, width=values.shape[1]), None)
    summary = import_files(tmp_path, kind)
    assert summary["feature_types"] == ({"float16": 2} if kept == "float16" else {"float32": 1, "float16": 1})
    read = PatchStore(str(tmp_path / "store")).slide("a").features("imported").read(0, len(values))
    assert read.dtype == kept
    np.testing.assert_array_equal(read, values.astype(kept))


def test_an_import_that_forced_float16_is_made_again(tmp_path: Path) -> None:
    """As earlier versions did: the record tells it, and the next import reads the file again."""
    write_pt(tmp_path / "made" / "a.pt", 1000 + 0.05 * features_of(0))
    import_files(tmp_path, "pt", ("a,0",))
    store = PatchStore(str(tmp_path / "store"))
    parameters = {**(store.slide("a").record.parameters or {}), "feature_type": "float16"}
    rewrite_metadata(store.group_uri("a"), {}, {"parameters": parameters})
    store.slide("a").write_features("imported", np.full((12, 5), 1000, np.float16), {"imported": "pt"})
    summary = import_files(tmp_path, "pt", ("a,0",))
    assert (summary["skipped"], summary["feature_types"]) == (0, {"float32": 1})
    assert import_files(tmp_path, "pt", ("a,0",))["skipped"] == 1


def test_tensors_that_cannot_be_read_are_quarantined(tmp_path: Path) -> None:
    made = tmp_path / "made"
    write_pt(made / "a.pt", features_of(0))
    write_pt(made / "short.pt", features_of(0))
    cut_short(made / "short.pt")
    torch.save({"labels": torch.zeros(3)}, made / "other.pt")
    torch.save({"features": Path("x")}, made / "objects.pt")
    reasons = import_files(tmp_path, "pt", ("a,0", "short,1", "other,1", "objects,0"))["quarantined"]
    assert set(reasons) == {"short", "other", "objects"}
    assert "may run code when read" in reasons["objects"]
    assert reasons["other"] == "no features in it, but 1 other entries"
    assert all(len(reason.splitlines()) == 1 for reason in reasons.values())


def test_a_tensor_that_repeats_one_row_beyond_any_slide_is_quarantined(tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    torch.save(torch.zeros(1, 8).expand(10**12, 8), tmp_path / "made" / "a.pt")
    reasons = import_files(tmp_path, "pt", ("a,0",))["quarantined"]
    assert reasons["a"] == "features of shape (1000000000000, 8), 32,000 GB; allowed: 64 GB"
