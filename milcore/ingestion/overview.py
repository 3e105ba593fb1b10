"""HTML page of a cohort: thumbnail, tissue, counts, scale and status of every slide.

Self-contained and sortable: no other file, no network. A thumbnail shows the whole slide without its label and macro
images; px without tissue are dimmed, which shows a mask that misses tissue or includes a pen mark.
"""

import posixpath
from collections.abc import Iterator
from typing import Any

import jinja2

from milcore.cohort.manifest import Slide
from milcore.ingestion.slide import unread_text
from milcore.runtime import storage
from milcore.runtime.html import data_uri
from milcore.store.slide_group import SlideGroup
from milcore.store.slide_record import SlideRecord
from milcore.store.store import PatchStore
from milcore.store.thumbnail import thumbnail_jpeg

PAGE = "cohort.html"
THUMBNAIL_PX = 192


def write_cohort_page(store_uri: str) -> str:
    """Write the page of a store's cohort to the store; return its URI."""
    store = PatchStore(store_uri)
    rows = list(_rows(store))
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("milcore", "ingestion"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    counts = {state: sum(row["status"] == state for row in rows) for state in ("ok", "quarantined", "missing")}
    page = environment.get_template("overview.html.j2").render(
        store=posixpath.basename(store.uri), rows=rows, counts=counts
    )
    uri = storage.join(store.uri, PAGE)
    storage.write_bytes(uri, page.encode())
    return uri


def _rows(store: PatchStore) -> Iterator[dict[str, Any]]:
    manifest = store.manifest()
    records = store.records()
    for slide in manifest.slides:
        yield _row(store, slide, records[slide.slide_id]) | {"label": manifest.classes[slide.label]}


def _row(store: PatchStore, slide: Slide, stored: SlideRecord | None) -> dict[str, Any]:
    record = stored or SlideRecord(slide.slide_id, reason="not ingested yet")
    size, mpp, counts, scan = record.size_level0, record.mpp, record.counts, record.scan
    return {
        "slide_id": slide.slide_id,
        "patient_id": slide.patient_id,
        "status": record.status or "missing",
        "reason": record.reason or "; ".join(_notes(record)),
        "patches": record.instances,
        "grid": None if counts is None else counts.grid,
        "unreadable": None if counts is None else counts.unreadable,
        "mpp": None if mpp is None else mpp.level0,
        "mpp_from": "" if mpp is None else mpp.origin,
        "size": "" if size is None else f"{size[0]:,} x {size[1]:,}",
        "reader": "" if scan is None else scan.reader,
        "picture": _picture(SlideGroup(store.group_uri(slide.slide_id), record)) if record.status == "ok" else None,
    }


def _notes(record: SlideRecord) -> Iterator[str]:
    """Notes on a slide that is ok."""
    scan, size = record.scan, record.size_level0
    if scan is not None and scan.codec_instead:
        yield scan.codec_instead
    if scan is not None and scan.unread_images and size is not None:
        yield unread_text(scan.unread_images, size)


def _picture(slide: SlideGroup) -> str | None:
    """Thumbnail as a data URI; None where an import has none."""
    picture = thumbnail_jpeg(slide, THUMBNAIL_PX)
    return None if picture is None else data_uri(picture, "jpeg")
