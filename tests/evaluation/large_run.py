"""A run on many small slides of imported features, made in a few milliseconds a slide."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from milcore.cohort.manifest import Manifest, Slide
from milcore.config import SplitConfig, TrainConfig
from milcore.store.slide_group import SlideGroup
from milcore.store.slide_record import ImportOrigin, SlideMpp, SlideRecord, TileCounts
from milcore.store.store import PatchStore
from milcore.training.context import LocalContext
from milcore.training.run import prepare_run, train_run

WIDTH = 8
EDGE = 256
OUTSIDE_TEST = 40
TRAIN = TrainConfig(features="made", hidden=4, attention_hidden=4, epochs=1, batch_size=16)
WRITERS = 8


def write_large_run(folder: str, slides: int, pictures_every: int = 10, quarantined: int = 0) -> str:
    """A trained run with so many test slides; its store lies beside it.

    Args:
        folder: of store and run.
        slides: of the test split; a few more train and validate.
        pictures_every: every so many slides one has a thumbnail.
        quarantined: further slides that could not be read.
    """
    store = write_large_store(f"{folder}/store", slides, pictures_every, quarantined)
    run = f"{folder}/run"
    prepare_run(store.uri, run, TRAIN, SplitConfig())
    train_run(run, LocalContext(None, torch.device("cpu")))
    return run


def write_large_store(uri: str, slides: int, pictures_every: int = 10, quarantined: int = 0) -> PatchStore:
    """Slides of 8 to 16 instances in two classes; arguments as of ``write_large_run``."""
    store = PatchStore(uri)
    planned = list(_planned(slides + OUTSIDE_TEST + quarantined))
    store.write_manifest(Manifest(tuple(planned), ("normal", "tumour")))
    bad = planned[len(planned) - quarantined :]
    with ThreadPoolExecutor(WRITERS) as pool:
        list(pool.map(lambda k: _write_slide(store, planned[k], k, pictures_every), range(slides + OUTSIDE_TEST)))
        list(pool.map(lambda slide: store.quarantine(SlideRecord(slide.slide_id), "no tissue"), bad))
    store.join_catalogue()
    return store


def _planned(slides: int) -> Iterator[Slide]:
    for k in range(slides):
        split = "test" if k >= OUTSIDE_TEST else "val" if k % 4 >= 2 else "train"
        name = f"slide-{k:05d}"
        yield Slide(name, f"{name}.svs", k % 2, f"patient-{k:05d}", "", None, split, None)


def _write_slide(store: PatchStore, slide: Slide, k: int, pictures_every: int) -> None:
    """A slide's instances; those of a positive one lie apart, more or less by slide."""
    random = np.random.default_rng(k)
    instances = int(random.integers(8, 17))
    features = random.normal(0, 1, (instances, WIDTH))
    features[: 2 * slide.label] += random.normal(3, 2, WIDTH)
    record = SlideRecord(
        slide.slide_id,
        import_origin=ImportOrigin("npz", "features/made"),
        size_level0=(4 * EDGE, 4 * EDGE),
        mpp=SlideMpp(0.5, None, 0.5, "labels"),
        patch_size_level0=float(EDGE),
        patches=instances,
        counts=TileCounts(16, instances, 0, instances),
        features_width=WIDTH,
    )
    with store.writer(record, None, "zstd", 85, is_new=True) as writer:
        places = random.permutation(16)[:instances]
        writer.write_rows("coords", EDGE * np.stack([places % 4, places // 4], axis=1))
        labels = np.zeros(instances, np.int8)
        labels[: 2 * slide.label] = 1
        writer.write_rows("instance_labels", labels)
        if k % pictures_every == 0:
            writer.write_thumbnail(random.integers(120, 240, (128, 128, 3), dtype=np.uint8).repeat(4, 0).repeat(4, 1))
        group = SlideGroup(store.group_uri(slide.slide_id), record)
        stored = group.write_feature_array("made", features.astype(np.float16), {"imported": "npz"}, is_new=True)
        writer.keep_features("made", stored)
