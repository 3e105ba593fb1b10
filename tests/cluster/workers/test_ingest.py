"""Ray workers ingest what one process ingests; what travels to them does not grow with the cohort."""

import pickle
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest

from milcore import api
from milcore.cluster.launch import ingest_with
from milcore.config import IngestConfig, LaunchConfig
from milcore.errors import MILError
from milcore.ingestion.cohort import SlideWork, ingest, plan_cohort, stored_counts
from milcore.ingestion.slide_result import SlideOutcome, SlideResult, SlideTask
from milcore.runtime import storage
from milcore.slides.write_pyramid import write_pyramid
from milcore.store.store import PatchStore

CONFIG = IngestConfig(patch_size=64)
TWO = LaunchConfig(workers=2)
SLIDES = 3


def planned(folder_uri: str, scratch: Path) -> str:
    """A planned store of slides of 16 patches, and of a file that is none."""
    generator = np.random.default_rng(0)
    lines = ["slide_id,uri,label"]
    for k in range(SLIDES):
        pixels = generator.normal((200.0, 120.0, 170.0), 12.0, (256, 256, 3)).clip(0, 255).astype(np.uint8)
        write_pyramid(scratch / "slide.tiff", pixels, 0.5, 1)
        storage.write_bytes(storage.join(folder_uri, f"s{k}.tiff"), (scratch / "slide.tiff").read_bytes())
        lines.append(f"s{k},s{k}.tiff,{k % 2}")
    storage.write_bytes(storage.join(folder_uri, "broken.tiff"), b"no image")
    manifest, store = storage.join(folder_uri, "m.csv"), storage.join(folder_uri, "store")
    storage.write_bytes(manifest, "\n".join([*lines, "broken,broken.tiff,1", ""]).encode())
    plan_cohort(manifest, store)
    return store


def patches_digests(store: PatchStore) -> dict[str, str]:
    return {slide_id: store.slide(slide_id).patches_digest for slide_id in store.slide_ids()}


def test_ray_workers_ingest_what_one_process_ingests(local_ray: None, tmp_path: Path) -> None:
    alone, together = planned(str(tmp_path / "alone"), tmp_path), planned(str(tmp_path / "together"), tmp_path)
    list(ingest(alone, CONFIG, 0))
    counts = ingest_with(together, CONFIG, TWO)
    assert sorted(counts["ok"]) == ["s0", "s1", "s2"]
    assert list(counts["quarantined"]) == ["broken"]
    assert (counts["patches"], counts["skipped"]) == (16 * SLIDES, 0)
    assert patches_digests(PatchStore(together)) == patches_digests(PatchStore(alone))
    assert ingest_with(together, CONFIG, TWO)["skipped"] == SLIDES + 1


def test_counts_of_a_store_are_those_of_its_ingestion(tmp_path: Path) -> None:
    store = planned(str(tmp_path), tmp_path)
    with pytest.raises(MILError, match="4 of 4 slides are unaccounted for"):
        stored_counts(PatchStore(store))
    list(ingest(store, CONFIG, 0))
    counts = stored_counts(PatchStore(store))
    assert counts["ok"] == ["s0", "s1", "s2"]
    assert "broken" in counts["quarantined"]
    assert counts["patches"] == 16 * SLIDES


def sizes_of_messages(cohort: int, folder: Path) -> set[int]:
    """Bytes of the function, a slide and its outcome, of which Ray's store holds one for each worker."""
    rows = [f"s{k:06d},absent/s{k:06d}.tiff,{k % 2}" for k in range(cohort)]
    (folder / "m.csv").write_text("\n".join(["slide_id,uri,label", *rows, ""]))
    plan_cohort(str(folder / "m.csv"), str(folder / f"store{cohort:06d}"))
    sizes: set[int] = set()

    def spy(work: SlideWork, tasks: Iterable[SlideTask], killed: SlideWork) -> Iterator[SlideResult]:
        for task in tasks:
            outcome = SlideResult(SlideOutcome(task.slide.slide_id, "ok", None, 1, skipped=False), None)
            sizes.add(len(pickle.dumps(work)) + len(pickle.dumps(task)) + len(pickle.dumps(outcome)))
            yield outcome

    assert len(list(ingest(str(folder / f"store{cohort:06d}"), CONFIG, 2, map_slides=spy))) == cohort
    return sizes


def test_what_travels_for_a_slide_does_not_grow_with_the_cohort(tmp_path: Path) -> None:
    few, many = sizes_of_messages(2, tmp_path), sizes_of_messages(2_000, tmp_path)
    assert few == many
    assert max(many) < 4_000


def test_a_command_deals_slides_to_ray(local_ray: None, tmp_path: Path) -> None:
    store = planned(str(tmp_path), tmp_path)
    report = api.ingest(tmp_path / "m.csv", store, workers=2, ray_address="local", config=CONFIG)
    assert (sorted(report.ok), list(report.quarantined)) == (["s0", "s1", "s2"], ["broken"])
