"""Tensors alone or with places come back; what may run code when read is left unread."""

from pathlib import Path

import numpy as np
import torch

from milcore.store.store import PatchStore
from tests.ingestion.imports.made import GRID, cut_short, features_of, import_files, write_pt


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
