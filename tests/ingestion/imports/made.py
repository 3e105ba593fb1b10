"""What others make: npz sets, CLAM's and TRIDENT's .h5, tensors and a table of labels."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from milcore.config import ImportConfig
from milcore.ingestion.imports.import_cohort import import_source
from milcore.ingestion.report import ImportReport

BAGS = ImportConfig(format="bags-npz")
GRID = np.array([[x, y] for y in (0, 256, 512) for x in (0, 256, 512, 768)])
TRIDENT = {
    "patch_size": 224,
    "patch_size_level0": 256,
    "level0_magnification": 40,
    "target_magnification": 20,
    "level0_width": 4000,
    "level0_height": 3000,
}


def write_bags(path: Path, **changed: Any) -> str:
    """Four bags of 3, 1, 2 and 2 instances, not in a row."""
    arrays = {
        "X": np.arange(24, dtype=np.float32).reshape(8, 3),
        "bag": np.array([0, 2, 0, 1, 3, 0, 2, 3], np.int32),
        "y": np.array([0, 1, 0, 1], np.uint8),
    }
    np.savez(path, **{name: value for name, value in (arrays | changed).items() if value is not None})
    return str(path)


def write_h5(path: Path, features: np.ndarray, coords: np.ndarray | None = GRID, **attrs: Any) -> None:
    """As CLAM and TRIDENT lay them out: datasets ``features`` and ``coords``, attributes on ``coords``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file["features"] = features
        if coords is not None:
            file["coords"] = coords
            file["coords"].attrs.update(attrs)


def write_pt(path: Path, features: np.ndarray, coords: np.ndarray | None = None, **more: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    tensor = torch.from_numpy(features)
    torch.save(tensor if coords is None else {"features": tensor, "coords": torch.from_numpy(coords), **more}, path)


def write_labels(folder: Path, rows: list[str], header: str = "slide_id,label") -> str:
    (folder / "labels.csv").write_text("\n".join([header, *rows, ""]))
    return str(folder / "labels.csv")


def features_of(seed: int, rows: int = 12, width: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, width)).astype(np.float32)


def import_files(folder: Path, kind: str, rows: tuple[str, ...] = ("a,0", "b,1"), **settings: Any) -> ImportReport:
    config = ImportConfig(format=kind, labels=write_labels(folder, list(rows)), **settings)
    return import_source(str(folder / "made"), str(folder / "store"), config)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
