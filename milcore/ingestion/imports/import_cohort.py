"""Features or patches made elsewhere become a store on which everything after ingestion works.

A slide ends ``ok`` or ``quarantined`` with its reason, and running again does only what is missing or has changed, as
in ingestion. The surprise: a new slide cannot follow an import, so ``milcore predict`` refuses a run on such a store.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

from milcore.cohort.manifest import Slide
from milcore.config import ImportConfig, ImportFormat
from milcore.errors import InputError, SlideError, UnreachableSlideError
from milcore.ingestion.cohort import ingest_counts
from milcore.ingestion.imports.h5 import open_h5
from milcore.ingestion.imports.npz import open_bags, open_patches
from milcore.ingestion.imports.parquet import open_table
from milcore.ingestion.imports.pt import open_pt
from milcore.ingestion.imports.slide_image import Picture, scale, see_slide, take_picture
from milcore.ingestion.imports.source import Array, Instances, Source
from milcore.ingestion.slide import SlideOutcome
from milcore.runtime import storage
from milcore.runtime.progress import track
from milcore.store.store import PatchStore, SlideStatus

IMPORTS: dict[ImportFormat, Callable[[str, ImportConfig], Source]] = {
    "bags-npz": open_bags,
    "patches-npz": open_patches,
    "clam": open_h5,
    "trident": open_h5,
    "pt": open_pt,
    "parquet": open_table,
}
PATCHES = "patches"
THUMBNAIL_QUALITY = 90
# these decide on the cohort and not on what is written of a slide
FREE_SETTINGS = {"labels", "positive"}


def import_source(source_uri: str, store_uri: str, config: ImportConfig) -> dict[str, Any]:
    """Import every labelled slide of a source.

    Args:
        source_uri: a file, or a folder with a file per slide.
        store_uri: the store to write; one that holds this import already gets what is missing or has changed.
        config: what the source is and how it is taken.

    Returns:
        ``ok`` (slide ids), ``quarantined`` (id to reason), ``patches`` (instances), ``skipped`` (how many were as they
        should be), ``features`` (their name, None of patches), ``unlabelled`` (files that no label names, left out) and
        ``without_picture`` (id to the reason why a slide's own file could not be read).

    Raises:
        InputError: the source cannot be read as a whole, or the store holds something else.
    """
    source = IMPORTS[config.format](storage.absolute(source_uri), config)
    store, what = PatchStore(store_uri), _what(config)
    _claim(store, source, what)
    slides = source.manifest.slides
    outcomes = [_import_slide(slide, source, store, config) for slide in track(slides, "import", len(slides))]
    outcomes = _quarantine_odd_widths(store, outcomes)
    return {
        **ingest_counts(outcomes),
        "features": config.name if what != PATCHES else None,
        "unlabelled": list(source.unlabelled),
        "without_picture": _without_picture(store),
    }


def _what(config: ImportConfig) -> str:
    """What an import of these settings writes of a slide."""
    return PATCHES if config.format == "patches-npz" else f"features/{config.name}"


def _claim(store: PatchStore, source: Source, what: str) -> None:
    """Write the cohort, unless the store holds slides that were ingested or imported as something else."""
    before = store.statuses() if store.has_manifest() else {}
    held = {_held(status) for status in before.values() if status is not None} - {what}
    if held:
        raise InputError(
            f"{store.uri} holds {', '.join(sorted(held))}, this import makes {what}; allowed: a new store, or one "
            "of an earlier import of the same; take another store"
        )
    if not before or store.manifest() != source.manifest:
        store.write_manifest(source.manifest)


def _held(status: SlideStatus) -> str:
    return str(status.attrs.get("imported", {}).get("as", "ingested slides"))


def _import_slide(slide: Slide, source: Source, store: PatchStore, config: ImportConfig) -> SlideOutcome:
    """Bring one slide into the store, or into quarantine with its reason."""
    attrs, seen = _told(slide, source, config), None
    try:
        seen = {**source.see(slide), "slide": see_slide(slide)}
        before = _good_before(slide, attrs, store)
        kept = store.source(slide.slide_id) or {}
        if before and kept == seen:
            return _as_before(slide, before)
        instances = source.read(slide)
        attrs["source"] = {"uri": seen["uri"], "sha256": instances.sha256}
        if before and before.attrs.get("source") == attrs["source"] and kept.get("slide") == seen["slide"]:
            outcome = _as_before(slide, before)
        else:
            _write(slide, instances, store, attrs)
            outcome = SlideOutcome(slide.slide_id, "ok", None, len(instances), skipped=False)
    except SlideError as error:
        retry = isinstance(error, UnreachableSlideError)
        store.quarantine(slide.slide_id, str(error), attrs | {"retry": retry})
        outcome = SlideOutcome(slide.slide_id, "quarantined", str(error), 0, skipped=False)
    if seen is not None:
        store.write_source(slide.slide_id, seen)
    return outcome


def _told(slide: Slide, source: Source, config: ImportConfig) -> dict[str, Any]:
    """Attributes that say what an import would make of a slide; an equal one made before is good still."""
    settings = config.model_dump(mode="json", exclude=FREE_SETTINGS)
    parameters = {**settings, "feature_type": source.feature_type, "slide_uri": slide.uri, "slide_mpp": slide.mpp}
    return {"imported": {"format": config.format, "as": _what(config)}, "parameters": parameters}


def _good_before(slide: Slide, attrs: dict[str, Any], store: PatchStore) -> SlideStatus | None:
    """How an earlier import of the same settings ended; None where there was none, or it is to be tried again."""
    before = store.status(slide.slide_id)
    if before is None or before.attrs.get("retry") or any(before.attrs.get(n) != its for n, its in attrs.items()):
        return None
    whole = before.state != "ok" or attrs["imported"]["as"] == PATCHES
    return before if whole or store.slide(slide.slide_id).has_features(attrs["parameters"]["name"]) else None


def _as_before(slide: Slide, before: SlideStatus) -> SlideOutcome:
    return SlideOutcome(slide.slide_id, before.state, before.reason, before.attrs.get("patches", 0), skipped=True)


def _write(slide: Slide, instances: Instances, store: PatchStore, attrs: dict[str, Any]) -> None:
    """Write a slide's group, then its features.

    Raises:
        SlideError: there are no instances, values that cannot be stored, or places outside the slide.
    """
    if not len(instances):
        raise SlideError("no instances")
    features = _storable(instances.features, attrs["parameters"]["feature_type"])
    edge = None if instances.patches is None else instances.patches.shape[1]
    told = {**attrs, **instances.attrs, "patches": len(instances)}
    if features is not None:
        told["features_width"] = features.shape[1]
    picture = take_picture(slide, told.get("patch_size_level0"))
    told |= scale(slide, picture, told)
    _check_places(instances, told)
    with store.writer(slide.slide_id, told, edge, "zstd", THUMBNAIL_QUALITY) as writer:
        for patch in () if instances.patches is None else instances.patches:
            writer.append_patch(np.broadcast_to(patch, (*patch.shape[:2], 3)))
        for name, values in instances.rows.items():
            writer.write_rows(name, values)
        if isinstance(picture, Picture):
            writer.write_thumbnail(picture.thumbnail)
    if features is not None:
        made = {"imported": attrs["imported"]["format"], "source": attrs["source"]}
        store.slide(slide.slide_id).write_features(attrs["parameters"]["name"], features, made)


def _check_places(instances: Instances, told: dict[str, Any]) -> None:
    if "coords" not in instances.rows:
        return
    (right, bottom), (width, height) = instances.rows["coords"].max(axis=0).tolist(), told["size_level0"]
    if right >= width or bottom >= height:
        raise SlideError(
            f"a patch begins at ({right}, {bottom}), the slide measures {width} x {height} px: another slide?"
        )


def _quarantine_odd_widths(store: PatchStore, outcomes: list[SlideOutcome]) -> list[SlideOutcome]:
    """Set aside slides whose features are not as wide as those of most; a later run reads them again."""
    found = {name: status for name, status in store.statuses().items() if status is not None and status.state == "ok"}
    widths = {name: its.attrs["features_width"] for name, its in found.items() if "features_width" in its.attrs}
    most = Counter(widths.values()).most_common(1)
    odd = {
        name: f"features {its} wide, most slides have {most[0][0]}" for name, its in widths.items() if its != most[0][0]
    }
    for name, reason in odd.items():
        kept = {key: found[name].attrs[key] for key in ("imported", "parameters", "source")}
        store.quarantine(name, reason, kept | {"retry": True})
    return [
        SlideOutcome(its.slide_id, "quarantined", odd[its.slide_id], 0, skipped=False) if its.slide_id in odd else its
        for its in outcomes
    ]


def _without_picture(store: PatchStore) -> dict[str, str]:
    told = {name: status.attrs.get("no_picture") for name, status in store.statuses().items() if status is not None}
    return {name: reason for name, reason in told.items() if reason is not None}


def _storable(features: Array | None, feature_type: str) -> Array | None:
    """The features as they are stored; None where there are none.

    Raises:
        SlideError: a value is no number, or beyond the type.
    """
    if features is None:
        return None
    bad = int((~np.isfinite(features)).any(axis=1).sum())
    if bad:
        raise SlideError(f"{bad} of {len(features)} rows of features hold NaN or infinity")
    largest, most = float(np.abs(features).max(initial=0.0)), float(np.finfo(feature_type).max)
    if largest > most:
        raise SlideError(f"features reach {largest:,.0f}, {feature_type} holds {most:,.0f} at most; scale them down")
    return features.astype(feature_type)
