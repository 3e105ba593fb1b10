"""Digest of a store's slides and patches, by which a scheduler reuses results.

The scheduler compares arguments only. The digest covers all that a step reads and all that it has written; while any of
that is missing, it equals no other. So a result is reused only where the step would change nothing.
"""

from typing import Any

from milcore.errors import SlideError
from milcore.runtime.digest import digest, unique_digest
from milcore.slides.source import source_version
from milcore.store.store import PatchStore


def store_state(store_uri: str) -> str:
    """Digest of a cohort's files and of their records in the store."""
    store = PatchStore(store_uri)
    records = store.records()
    states: dict[str, Any] = {}
    for slide in store.manifest().slides:
        record = records.get(slide.slide_id)
        if record is None or record.retry:
            return unique_digest()
        try:
            version = source_version(slide.uri)._asdict()
        except SlideError:
            return unique_digest()
        if store.source(slide.slide_id) != version:
            return unique_digest()
        states[slide.slide_id] = [version, slide.label, record.to_complete_attrs()]
    return digest(states)
