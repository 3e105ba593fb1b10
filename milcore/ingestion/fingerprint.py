"""Digests of what lies in storage, for a scheduler that knows arguments only and reuses results of equal ones.

A digest covers all that a step reads and all that it has written; while any of that is missing, it is one never seen
before. So a result is reused only where doing the work again would change nothing.
"""

from typing import Any

from milcore.errors import SlideError
from milcore.runtime.digest import digest, unique_digest
from milcore.slides.source import source_version
from milcore.store.store import PatchStore


def store_state(store_uri: str) -> str:
    """Digest of a cohort's slides as they are now and of the patches made of them."""
    store = PatchStore(store_uri)
    statuses = store.statuses()
    found: dict[str, Any] = {}
    for slide in store.manifest().slides:
        status = statuses.get(slide.slide_id)
        if status is None or status.attrs.get("retry"):
            return unique_digest()
        try:
            seen = source_version(slide.uri)._asdict()
        except SlideError:
            return unique_digest()
        if store.source(slide.slide_id) != seen:
            return unique_digest()
        found[slide.slide_id] = [seen, slide.label, status.attrs]
    return digest(found)
