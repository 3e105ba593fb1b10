"""Check of every byte of a slide against its checksums and digests.

Slides of earlier versions have digests of patches and features only; those are checked.
"""

import hashlib

import numpy as np

from milcore.errors import StoreError
from milcore.runtime import storage
from milcore.store.features import features_digest
from milcore.store.slide_group import SlideGroup
from milcore.store.slide_row import read_rows
from milcore.store.store import PatchStore
from milcore.store.writer import patches_digest

PATCHES_PER_READ = 256
ROWS_AT_A_TIME = 1000


def slide_damage(store_uri: str, slide_id: str) -> list[str]:
    """Lines on the damaged arrays of a slide.

    Args:
        store_uri: patch store.
        slide_id: of a slide; one in quarantine has nothing to check.
    """
    try:
        record = PatchStore(store_uri).record(slide_id)
        if record is None:
            uri = PatchStore(store_uri).group_uri(slide_id)
            line = (
                f"slide {slide_id!r}: {uri}: expected a complete record, got none; it is lost or its ingestion never "
                "ended: run milcore ingest or milcore import again, or milcore info --rebuild to leave it out"
            )
            return [line]
        if record.status != "ok":
            return []
        slide = PatchStore(store_uri).slide(slide_id)
        features = [name for name in storage.names(storage.join(slide.uri, "features")) if name != "zarr.json"]
    except StoreError as error:
        return [error.line]
    lines = []
    for name in [*slide.array_names, *(f"features/{name}" for name in features)]:
        try:
            _check_array(slide, name)
        except StoreError as error:
            lines.append(error.line)
    return list(dict.fromkeys(lines))  # the check of patches reads coords too


def catalogue_damage(store_uri: str) -> list[str]:
    """Lines on the catalogue's rows that say something else than the slides.

    Slides that are lost or damaged have none: ``slide_damage`` tells of them.
    """
    catalogue = PatchStore(store_uri).catalogue()
    known = [slide_id for slide_id in catalogue.all_ids if catalogue.row(slide_id) is not None]
    lines = []
    for start in range(0, len(known), ROWS_AT_A_TIME):
        batch = known[start : start + ROWS_AT_A_TIME]
        rows = read_rows(store_uri, batch)
        lines += [_row_line(store_uri, name) for name in batch if name in rows and rows[name] != catalogue.row(name)]
    return lines


def _row_line(store_uri: str, slide_id: str) -> str:
    return (
        f"slide {slide_id!r}: catalogue of {store_uri}: expected the row to say what the slide's own objects say, got "
        f"another; run milcore info {store_uri} --rebuild"
    )


def _check_array(slide: SlideGroup, name: str) -> None:
    """Read an array and compare it with its digest, where it has one.

    Raises:
        StoreError: it is damaged.
    """
    if name == "patches":
        digest, stored = _digest_of_patches(slide), slide.patches_digest
    elif name.startswith("features/"):
        feature = name.removeprefix("features/")
        features = slide.features(feature)
        digest = features_digest(features.read(0, features.shape[0]))
        stored = slide.feature_attrs(feature)["digest"]
    else:
        slide.array(name)
        return
    if digest != stored:
        raise StoreError(f"slide {slide.slide_id!r}: {name}: expected the digest {stored}, got {digest}; make it again")


def _digest_of_patches(slide: SlideGroup) -> str:
    sha256 = hashlib.sha256()
    for start in range(0, len(slide), PATCHES_PER_READ):
        for chunk in slide.chunks(start, start + PATCHES_PER_READ):
            sha256.update(chunk.data)
    coords = slide.coords if slide.has_coords else np.empty((0, 2), np.int32)
    return patches_digest(sha256.hexdigest(), coords)
