"""Tensors alone or with places come back; what may run code when read is left unread."""

import re
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from milcore.config import ImportConfig
from milcore.ingestion.imports.import_cohort import import_source
from milcore.store.store import PatchStore
from tests.cohorts import rewrite_metadata
from tests.ingestion.imports.made import GRID, cut_short, features_of, import_files, write_h5, write_pt

CASES = Path(__file__).resolve().parents[2] / "cases" / "10"


def test_tensors_alone_or_with_places_come_back(tmp_path: Path) -> None:
    write_pt(tmp_path / "made" / "a.pt", features_of(0))
    write_pt(tmp_path / "made" / "b.pt", features_of(1), GRID, patch_size_level0=512)
    torch.save(torch.from_numpy(features_of(2)).bfloat16(), tmp_path / "made" / "c.pt")
    assert import_files(tmp_path, "pt", ("a,0", "b,1", "c,0")).ok == ["a", "b", "c"]
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
    assert summary.feature_types == ({"float16": 2} if kept == "float16" else {"float32": 1, "float16": 1})
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
    assert (summary.skipped, summary.feature_types) == (0, {"float32": 1})
    assert import_files(tmp_path, "pt", ("a,0",)).skipped == 1


def test_tensors_that_cannot_be_read_are_quarantined(tmp_path: Path) -> None:
    made = tmp_path / "made"
    write_pt(made / "a.pt", features_of(0))
    write_pt(made / "short.pt", features_of(0))
    cut_short(made / "short.pt")
    torch.save({"labels": torch.zeros(3)}, made / "other.pt")
    torch.save({"features": Path("x")}, made / "objects.pt")
    reasons = import_files(tmp_path, "pt", ("a,0", "short,1", "other,1", "objects,0")).quarantined
    assert set(reasons) == {"short", "other", "objects"}
    assert "may run code when read" in reasons["objects"]
    assert reasons["other"] == "no features in it, but 1 other entries"
    assert all(len(reason.splitlines()) == 1 for reason in reasons.values())


FORMS: dict[str, tuple[Callable[[], Any], str | None]] = {
    "sparse": (lambda: torch.eye(5).to_sparse(), "features: a sparse tensor; allowed: dense numbers"),
    "csr": (lambda: torch.eye(5).to_sparse_csr(), "features: a sparse tensor"),
    "vast": (
        lambda: torch.sparse_coo_tensor(torch.tensor([[0], [0]]), torch.tensor([1.0]), (10**9, 1024)),
        "features: a sparse tensor",
    ),
    "quantised": (
        lambda: torch.quantize_per_tensor(torch.eye(5), 0.1, 0, torch.qint8),
        r"features: a quantised tensor; allowed: dense numbers; save it with \.to_dense\(\) or \.dequantize\(\)",
    ),
    "meta": (lambda: torch.empty(12, 5, device="meta"), "features: a tensor without values, on the device meta"),
    "complex": (lambda: torch.zeros(12, 5, dtype=torch.complex64).conj(), "features: a complex tensor"),
    "nested": (lambda: torch.nested.nested_tensor([torch.zeros(3, 5), torch.zeros(2, 5)]), "features: a nested tensor"),
    "repeats": (lambda: torch.zeros(1, 8).expand(10**12, 8), "features: a view that repeats its values to 3.2e.04 GB"),
    "repeats_less": (
        lambda: torch.zeros(1, 1024).expand(10**7, 1024),
        "features: a view that repeats its values to 41 GB",
    ),
    "norows": (lambda: torch.zeros(0, 5), "no instances"),
    "number": (lambda: torch.tensor(3.0), r"features of shape \(\), type float32; allowed: numbers"),
    "truths": (lambda: torch.zeros(12, 5, dtype=torch.bool), "type bool; allowed: numbers"),
    "places": (
        lambda: {"features": torch.eye(5), "coords": torch.eye(5)[:, :2].to_sparse()},
        "coords: a sparse tensor",
    ),
    "edge": (lambda: {"features": torch.eye(5), "patch_size_level0": 10**400}, None),
    "gradient": (lambda: torch.nn.Parameter(torch.eye(5)), None),
    "eight_bits": (lambda: torch.eye(5).to(torch.float8_e4m3fn), None),
    "negated": (lambda: torch.imag(torch.zeros(5, 5, dtype=torch.complex64).conj()), None),
}


def test_tensors_of_every_form_are_imported_or_quarantined(tmp_path: Path) -> None:
    """None of them ends the import, or takes memory for what the file only declares."""
    made = tmp_path / "made"
    write_pt(made / "good.pt", features_of(0))
    (made / "empty.pt").write_bytes(b"")
    with warnings.catch_warnings(action="ignore"):  # of torch, as it makes them
        for name, (make, _) in FORMS.items():
            torch.save(make(), made / f"{name}.pt")
    rows = [f"{name},{k % 2}" for k, name in enumerate(["good", "empty", *FORMS])]
    summary = import_files(tmp_path, "pt", tuple(rows))
    expected = {"empty": r"empty file \(0 bytes\)"} | {name: reason for name, (_, reason) in FORMS.items() if reason}
    assert summary.quarantined.keys() == expected.keys()
    for name, reason in expected.items():
        assert re.search(reason, summary.quarantined[name]), (name, summary.quarantined[name])


def test_an_archive_of_tensors_that_unpacks_to_a_bomb_is_quarantined(tmp_path: Path) -> None:
    """A hundredth of it in one member, as deflate packs zeros; the others only declare their sizes."""
    (tmp_path / "made").mkdir()
    with (
        zipfile.ZipFile(tmp_path / "made" / "a.pt", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("a/data/0", "w", force_zip64=True) as member,
    ):
        for _ in range(110):
            member.write(bytes(10**7))
    reasons = import_files(tmp_path, "pt", ("a,0",)).quarantined
    assert re.fullmatch(r"declares 1 GB, has 1\.\d MB; allowed: 200 times what it has", reasons["a"])


# labels and folder in tests/cases/10, files that are imported, files that are not with the reason, why that is right
TENSORS: dict[str, tuple[list[str], dict[str, str], str]] = {
    "pt_empty": (["plain"], {"empty": "empty file (0 bytes)"}, "a copy that broke off costs its slide, not the cohort"),
    "pt_sparse": (["plain"], {"sparse": "features: a sparse tensor"}, "its values are no table; no memory is taken"),
}


@pytest.mark.parametrize("case", TENSORS)
def test_the_cases_of_tensors(tmp_path: Path, case: str) -> None:
    """A bad file beside a good one."""
    good, bad, why = TENSORS[case]
    config = ImportConfig(format="pt", labels=str(CASES / f"{case}.csv"))
    summary = import_source(str(CASES / case), str(tmp_path), config)
    assert summary.ok == good, why
    assert summary.quarantined.keys() == bad.keys(), why
    assert all(summary.quarantined[name].startswith(reason) for name, reason in bad.items()), why
