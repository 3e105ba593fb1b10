"""A small store of random patches for tests that need slides already ingested."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pyarrow as pa

from milcore.cohort.manifest import Manifest, Slide
from milcore.cohort.splits import splits_digest
from milcore.runtime import storage
from milcore.store.metadata import metadata_uri, parse_metadata, write_metadata
from milcore.store.slide_record import SlideRecord
from milcore.store.store import PatchStore
from milcore.training.run_files import publish
from milcore.training.run_folder import Run

PATCH_PX = 16


def write_store(uri: str, slides: int = 12, patches: int = 6, seed: int = 0) -> PatchStore:
    """Slides s00, s01 … of one patient each; every other one is positive and holds one dark patch."""
    store = PatchStore(uri)
    planned = tuple(
        Slide(f"s{k:02d}", f"s{k:02d}.tiff", k % 2, f"p{k:02d}", "", None, None, None) for k in range(slides)
    )
    store.write_manifest(Manifest(planned, ("0", "1")))
    generator = np.random.default_rng(seed)
    for slide in planned:
        size = (PATCH_PX * patches, PATCH_PX)
        record = SlideRecord(slide.slide_id, patch_size_level0=float(PATCH_PX), size_level0=size)
        with store.writer(record, PATCH_PX, "none", 90) as writer:
            for place in range(patches):
                brightness = 40 if slide.label and place == 2 else 200
                patch = generator.integers(brightness - 30, brightness + 30, (PATCH_PX, PATCH_PX, 3), dtype=np.uint8)
                writer.append(patch, place * PATCH_PX, 0, 1.0)
            writer.write_thumbnail(np.full((PATCH_PX, PATCH_PX * patches, 3), 255, np.uint8))
    return store


def relabel(store: PatchStore, labels: Mapping[str, int], classes: tuple[str, ...] = ("0", "1")) -> Manifest:
    """The store's manifest with other labels of some slides, as after an ingestion from a corrected one."""
    slides = [replace(slide, label=labels.get(slide.slide_id, slide.label)) for slide in store.manifest().slides]
    manifest = Manifest(tuple(slides), classes)
    store.write_manifest(manifest)
    return manifest


def write_features(store: PatchStore, name: str = "mean_rgb") -> None:
    """The mean colour of each patch as its features."""
    for slide_id in store.slide_ids():
        slide = store.slide(slide_id)
        colour = slide.patches(0, len(slide)).mean(axis=(1, 2)) / 255.0
        slide.write_features(name, colour.astype(np.float16), {"encoder": "mean_rgb", "weights_digest": "0" * 64})


def as_folds(run_uris: list[str], uri: str) -> str:
    """A run of folds made of finished plain runs on one split; the slides outside test are dealt to the folds."""
    spec = Run(run_uris[0]).spec().model_dump(mode="json")
    rows = Run(run_uris[0]).splits().to_pylist()
    folds = [-1 if row["split"] == "test" else k % len(run_uris) for k, row in enumerate(rows)]
    splits = pa.Table.from_pylist(rows).append_column("fold", pa.array(folds))
    storage.write_table(f"{uri}/splits.parquet", splits)
    digest = splits_digest(splits)
    config = spec | {"folds": len(run_uris), "splits_digest": digest}
    publish({f"{uri}/config.json": storage.json_bytes(config)})
    for k, run in enumerate(run_uris):
        for name in ("model.safetensors", "history.parquet"):
            storage.write_bytes(f"{uri}/folds/{k}/{name}", storage.read_bytes(f"{run}/{name}"))
    return uri


def rewrite_json(uri: str, changes: Mapping[str, object]) -> None:
    """Write other members of a run's JSON file, published with its digest, as another program could."""
    publish({uri: storage.json_bytes(storage.read_json(uri) | changes)})


def rewrite_metadata(uri: str, changes: Mapping[str, object], attributes: Mapping[str, object]) -> None:
    """Write other members and attributes of a group's or array's zarr.json, with a digest that agrees."""
    zarr_uri = metadata_uri(uri)
    metadata = {**parse_metadata(storage.read_bytes(zarr_uri), zarr_uri), **changes}
    write_metadata(uri, metadata | {"attributes": {**metadata["attributes"], **attributes}})
