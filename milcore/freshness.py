"""Digests of what lies in storage, for a scheduler that knows arguments only and reuses results of equal ones.

A digest covers all that a step reads and all that it has written; while any of that is missing, it is one never seen
before. So a result is reused only where doing the work again would change nothing.
"""

import hashlib
import json
import uuid
from typing import Any

from milcore.errors import SlideError
from milcore.runtime import storage
from milcore.slides.source import see
from milcore.store.store import PatchStore

PUBLISHED = ("config.json", "splits.parquet", "model.safetensors", "metrics.json", "predictions.parquet", "report.html")


def store_state(store_uri: str) -> str:
    """Digest of a cohort's slides as they are now and of the patches made of them."""
    store = PatchStore(store_uri)
    statuses = store.statuses()
    found: dict[str, Any] = {}
    for slide in store.manifest().slides:
        status = statuses.get(slide.slide_id)
        if status is None or status.attrs.get("retry"):
            return _never_seen()
        try:
            seen = see(slide.uri)._asdict()
        except SlideError:
            return _never_seen()
        if store.source(slide.slide_id) != seen:
            return _never_seen()
        found[slide.slide_id] = [seen, slide.label, status.attrs]
    return _digest(found)


def run_state(run_uri: str) -> str:
    """Digest of a run's weights and of what was published of it."""
    try:
        found = {name: storage.stat(storage.join(run_uri, name)) for name in PUBLISHED}
    except FileNotFoundError:
        return _never_seen()
    return _digest(found)


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _never_seen() -> str:
    return uuid.uuid4().hex
