"""Bags of a patch store."""

import functools
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import pyarrow as pa
import torch
from jaxtyping import Float
from torch import Tensor

from milcore.cohort.regression import check_patient_values
from milcore.cohort.survival import FollowUp
from milcore.config import PoolingName, TrainConfig, read_places
from milcore.mil.bags.bags import BagEntry, Bags, cache_bytes, slide_places
from milcore.mil.bags.rows import BlockRows, ChainedRows, Rows
from milcore.mil.instance_encoders.finetune import check_patches
from milcore.runtime import storage
from milcore.store.disk_cache import DiskCache, cache_folder, open_disk_cache
from milcore.store.features import Features
from milcore.store.slide_group import SlideGroup, check_coords
from milcore.store.store import PatchStore

PATCHES_PER_READ = 256


def load_bags(
    store_uri: str, config: TrainConfig, splits: pa.Table, poolings: Collection[PoolingName] | None = None
) -> Bags:
    """Bags of a split table, in its order, read lazily from the store.

    A bag is a slide or, by the config, a patient: the slides one after another, with the highest of their labels, or
    the patient's follow-up or value.

    Args:
        store_uri: of the store.
        config: whose bags and instances they are.
        splits: a row per slide.
        poolings: of a sweep, which may read places; None: that of the config.

    Raises:
        InputError: slides of a patient that is a bag have several values.
    """
    rows = splits.to_pylist()
    if config.target == "regression" and config.bag == "patient":
        check_patient_values(rows)
    slide_ids = [row["slide_id"] for row in rows]
    groups = PatchStore(store_uri).catalogue(slide_ids).slides(slide_ids)
    rows_of_bag: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        rows_of_bag.setdefault(row["patient_id"] if config.bag == "patient" else row["slide_id"], []).append(row)
    entries = [
        BagEntry(
            bag_id,
            bag_rows[0]["patient_id"],
            max(row.get("label", 0) for row in bag_rows),
            bag_rows[0]["split"],
            tuple(row["slide_id"] for row in bag_rows),
            tuple(len(groups[row["slide_id"]]) for row in bag_rows),
            FollowUp(bag_rows[0]["time"], bag_rows[0]["event"]) if "time" in bag_rows[0] else None,
            bag_rows[0].get("value"),
        )
        for bag_id, bag_rows in rows_of_bag.items()
    ]
    return open_bags(entries, groups, config, _disk_cache(store_uri, config), poolings)


def open_bags(
    entries: Sequence[BagEntry],
    groups: Mapping[str, SlideGroup],
    config: TrainConfig,
    cache: DiskCache | None = None,
    poolings: Collection[PoolingName] | None = None,
) -> Bags:
    """Bags of opened slides, read lazily.

    Args:
        entries: one per bag.
        groups: the slides of all bags, by id.
        config: whose instances they have: features, or patches.
        cache: of features on this machine's disk; None: none.
        poolings: as of ``load_bags``.
    """
    features = functools.cache(lambda slide_id: groups[slide_id].features(str(config.features), cache))

    def open_rows(entry: BagEntry) -> Rows:
        if config.features is None:
            return ChainedRows([instance_rows(groups[slide_id], config) for slide_id in entry.slides])
        return ChainedRows([_feature_rows(features(slide_id)) for slide_id in entry.slides])

    are_placed = read_places([config.pooling] if poolings is None else poolings)

    def open_places(entry: BagEntry) -> Float[Tensor, "instance 3"] | None:
        if not are_placed:
            return None
        return torch.cat([slide_places(k, _places(groups[slide_id])) for k, slide_id in enumerate(entry.slides)])

    return Bags(entries, open_rows, cache_bytes(config), open_places=open_places)


def _places(slide: SlideGroup) -> Float[Tensor, "instance 2"]:
    """Corner (x, y) of every patch in um.

    In level-0 px where the slide's scale is unknown.

    Raises:
        StoreError: the slide has no coords.
    """
    check_coords([slide])
    scale = 1.0 if slide.record.mpp is None else slide.record.mpp.level0
    return scale * torch.from_numpy(slide.array("coords")).double()


def _disk_cache(store_uri: str, config: TrainConfig) -> DiskCache | None:
    """The cache of features on this machine's disk.

    None of a local store, and where none is asked for.
    """
    if storage.is_local(store_uri) or not config.disk_cache_mb:
        return None
    return open_disk_cache(cache_folder(), int(config.disk_cache_mb * 1e6))


def instance_rows(slide: SlideGroup, config: TrainConfig) -> Rows:
    """Instances of a slide: features, or patches where the encoder takes patches.

    Features have axes (instance, feature), patches (instance, height, width, 3) in u1.
    """
    if config.features is not None:
        return _feature_rows(slide.features(config.features))
    check_patches(config.encoder, slide)
    return _patch_rows(slide)


def _patch_rows(slide: SlideGroup) -> Rows:
    return BlockRows(lambda start, stop: torch.from_numpy(slide.patches(start, stop)), len(slide), PATCHES_PER_READ)


def _feature_rows(features: Features) -> Rows:
    return BlockRows(
        lambda start, stop: torch.from_numpy(features.read(start, stop)), features.shape[0], features.rows_per_chunk
    )
