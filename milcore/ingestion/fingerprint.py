"""Digest of a store's slides and patches, by which a scheduler reuses results.

The scheduler compares arguments only. The digest covers all that a step reads and all that it has written; while any of
that is missing, there is none. So a result is reused only where the step would change nothing.
"""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

from milcore.runtime import storage
from milcore.runtime.digest import digest
from milcore.slides.source import source_versions
from milcore.store.catalogue import Catalogue
from milcore.store.store import PatchStore


def store_state(store_uri: str) -> str | None:
    """Digest of a cohort's files and of their records in the store.

    None while any is missing, or of another version of its file.
    """
    store = PatchStore(store_uri)
    manifest = store.manifest()
    slides = manifest.slides
    slide_ids = [slide.slide_id for slide in slides]
    if not store.group_ids().issuperset(slide_ids):
        return None
    catalogue = store.catalogue(slide_ids)
    records = catalogue.records
    if any(record is None or record.retry for record in records.values()):
        return None
    versions = source_versions(slide.uri for slide in slides)
    with ThreadPoolExecutor(storage.CONCURRENT_REQUESTS) as pool:  # of slides that the catalogue lacks
        stored = list(pool.map(lambda slide: _source(store, catalogue, slide.slide_id), slides))
    states: dict[str, Any] = {}
    for slide, of_ingestion in zip(slides, stored, strict=True):
        version, record = versions.get(slide.uri), records.get(slide.slide_id)
        if version is None or record is None or of_ingestion != version._asdict():
            return None
        row = [slide.label, slide.patient_id, slide.site, slide.split, slide.mpp]
        states[slide.slide_id] = [version._asdict(), row, record.to_complete_attrs()]
    return digest(states if not manifest.columns else [states, {**manifest.columns}])


def _source(store: PatchStore, catalogue: Catalogue, slide_id: str) -> dict[str, object] | None:
    """Version of a slide's file at the last ingestion."""
    row = catalogue.row(slide_id)
    return store.source(slide_id) if row is None else store.parse_source(row.source)
