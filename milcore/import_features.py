"""Features or patches made elsewhere become a store on which everything after ingestion works.

A slide ends ``ok`` or ``quarantined`` with its reason, and running again does only what is missing or has changed, as
in ingestion. The surprise: a new slide cannot follow an import, so ``milcore predict`` refuses a run on such a store.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from milcore import storage
from milcore.config import ImportConfig, ImportFormat
from milcore.errors import InputError, SlideError
from milcore.imports.npz import open_bags, open_patches
from milcore.imports.source import Array, FeatureType, Instances, Source
from milcore.ingest import SlideOutcome, summarise
from milcore.manifest import Slide
from milcore.progress import track
from milcore.store import PatchStore, SlideStatus

IMPORTS: dict[ImportFormat, Callable[[str, ImportConfig], Source]] = {
    "bags-npz": open_bags,
    "patches-npz": open_patches,
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
        should be), ``features`` (their name, None of patches) and ``unlabelled`` (files left out).

    Raises:
        InputError: the source cannot be read as a whole, or the store holds something else.
    """
    source = IMPORTS[config.format](storage.absolute(source_uri), config)
    store, what = PatchStore(store_uri), _what(config)
    _claim(store, source, what)
    slides = source.manifest.slides
    outcomes = [_import_slide(slide, source, store, config) for slide in track(slides, "import", len(slides))]
    made = config.name if what != PATCHES else None
    return {**summarise(outcomes), "features": made, "unlabelled": list(source.unlabelled)}


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
    attrs = _told(slide, source, config)
    seen = source.see(slide)
    before = store.status(slide.slide_id)
    if before and _still_good(before, attrs, store) and store.source(slide.slide_id) == seen:
        return SlideOutcome(slide.slide_id, before.state, before.reason, before.attrs.get("patches", 0), skipped=True)
    try:
        instances = source.read(slide)
        _write(slide.slide_id, instances, store, attrs, source.feature_type)
        outcome = SlideOutcome(slide.slide_id, "ok", None, len(instances), skipped=False)
    except SlideError as error:
        store.quarantine(slide.slide_id, str(error), attrs)
        outcome = SlideOutcome(slide.slide_id, "quarantined", str(error), 0, skipped=False)
    store.write_source(slide.slide_id, seen)
    return outcome


def _told(slide: Slide, source: Source, config: ImportConfig) -> dict[str, Any]:
    """Attributes that say what an import would make of a slide; an equal one made before is good still."""
    settings = config.model_dump(mode="json", exclude=FREE_SETTINGS)
    parameters = {**settings, "feature_type": source.feature_type, "slide_uri": slide.uri, "slide_mpp": slide.mpp}
    return {"imported": {"format": config.format, "as": _what(config)}, "parameters": parameters}


def _still_good(before: SlideStatus, attrs: dict[str, Any], store: PatchStore) -> bool:
    if before.attrs.get("retry") or any(before.attrs.get(name) != value for name, value in attrs.items()):
        return False
    name = attrs["parameters"]["name"]
    whole = attrs["imported"]["as"] == PATCHES or before.state != "ok"
    return whole or store.slide(before.attrs["slide_id"]).has_features(name)


def _write(
    slide_id: str, instances: Instances, store: PatchStore, attrs: dict[str, Any], feature_type: FeatureType
) -> None:
    """Write a slide's group, then its features.

    Raises:
        SlideError: there are no instances, or values that cannot be stored.
    """
    if not len(instances):
        raise SlideError("no instances")
    features = None if instances.features is None else _storable(instances.features, feature_type)
    edge = None if instances.patches is None else instances.patches.shape[1]
    source = {"sha256": instances.sha256}
    told = {**attrs, **instances.attrs, "patches": len(instances), "source": source}
    with store.writer(slide_id, told, edge, "zstd", THUMBNAIL_QUALITY) as writer:
        for patch in () if instances.patches is None else instances.patches:
            writer.append_patch(np.broadcast_to(patch, (*patch.shape[:2], 3)))
        for name, values in instances.rows.items():
            writer.write_rows(name, values)
    if features is not None:
        made = {"imported": attrs["imported"]["format"], "source": source}
        store.slide(slide_id).write_features(attrs["parameters"]["name"], features, made)


def _storable(features: Array, feature_type: FeatureType) -> Array:
    """The features as they are stored.

    Raises:
        SlideError: a value is no number, or beyond the type.
    """
    bad = int((~np.isfinite(features)).any(axis=1).sum())
    if bad:
        raise SlideError(f"{bad} of {len(features)} rows of features hold NaN or infinity")
    largest, most = float(np.abs(features).max(initial=0.0)), float(np.finfo(feature_type).max)
    if largest > most:
        raise SlideError(f"features reach {largest:,.0f}, {feature_type} holds {most:,.0f} at most; scale them down")
    return features.astype(feature_type)
