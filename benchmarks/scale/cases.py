"""Cohorts of the benchmark: files per slide as STAMP and others keep them, and a store imported from them."""

import io
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
import torch

from milcore.runtime import storage

WIDTH = 1024
PATCH_UM, PATCH_PX, MPP = 256.0, 224, 0.5
PROCESSES = 2
UPLOADS = 16


class Case(NamedTuple):
    """A cohort: its slides, and features (instances, 1024) f2 of each."""

    slides: int
    instances: int

    @property
    def name(self) -> str:
        """As on the command line."""
        return f"{self.slides}x{self.instances}"

    @property
    def slide_ids(self) -> list[str]:
        """Ids in order."""
        return [f"s{k:06d}" for k in range(self.slides)]


CASES = (Case(300, 5000), Case(3000, 200), Case(30000, 8))


def write_files(case: Case, uri: str) -> None:
    """Write ``h5/<slide>.h5``, ``pt/<slide>.pt`` and ``labels.csv`` below a URI; files that are there stay."""
    wanted = [
        (folder, suffix, sorted(set(case.slide_ids) - {Path(name).stem for name in storage.names(f"{uri}/{folder}")}))
        for folder, suffix in (("h5", "h5"), ("pt", "pt"))
    ]
    with ProcessPoolExecutor(PROCESSES, get_context("spawn")) as pool:  # a fork would share connections
        for folder, suffix, slide_ids in wanted:
            parts = [slide_ids[k::PROCESSES] for k in range(PROCESSES)]
            list(pool.map(partial(_write_slides, case, f"{uri}/{folder}", suffix), parts))
    rows = [f"{name},{k % 2},{MPP}" for k, name in enumerate(case.slide_ids)]
    storage.write_bytes(f"{uri}/labels.csv", "\n".join(["slide_id,label,mpp", *rows, ""]).encode())
    rows = [f"{name},h5/{name}.h5,{k % 2}" for k, name in enumerate(case.slide_ids)]
    storage.write_bytes(f"{uri}/manifest.csv", "\n".join(["slide_id,uri,label", *rows, ""]).encode())


def _write_slides(case: Case, uri: str, suffix: str, slide_ids: list[str]) -> None:
    make = h5_bytes if suffix == "h5" else pt_bytes
    with ThreadPoolExecutor(UPLOADS) as pool:
        for first in range(0, len(slide_ids), UPLOADS):  # as many in memory as are on their way
            some = [(f"{uri}/{name}.{suffix}", make(case, name)) for name in slide_ids[first : first + UPLOADS]]
            list(pool.map(lambda file: storage.write_bytes(*file), some))


def features_of(case: Case, slide_id: str) -> np.ndarray:
    """Random features, the same each time."""
    generator = np.random.default_rng(int(slide_id[1:]))
    return generator.standard_normal((case.instances, WIDTH), np.float32).astype(np.float16)


def h5_bytes(case: Case, slide_id: str) -> bytes:
    """A file as STAMP 2 writes it."""
    content, side = io.BytesIO(), int(np.ceil(np.sqrt(case.instances)))
    with h5py.File(content, "w") as file:
        file["feats"] = features_of(case, slide_id)
        file["coords"] = np.stack(np.divmod(np.arange(case.instances), side)[::-1], 1) * PATCH_UM
        file.attrs.update(unit="um", tile_size_um=PATCH_UM, tile_size_px=PATCH_PX, extractor="random")
    return content.getvalue()


def pt_bytes(case: Case, slide_id: str) -> bytes:
    """A tensor of features as CLAM and others save it."""
    content = io.BytesIO()
    torch.save(torch.from_numpy(features_of(case, slide_id)), content)
    return content.getvalue()
