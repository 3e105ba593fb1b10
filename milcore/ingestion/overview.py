"""The cohort at a glance: one HTML page with every slide's thumbnail and tissue, counts, scale, status and reason.

Self-contained and sortable: no other file, no network. A thumbnail shows the whole slide without its label and macro
images; what is not tissue is dimmed, so a mask that lost tissue or took in a pen mark is seen.
"""

import base64
import io
from collections.abc import Iterator
from typing import Any

import jinja2
import numpy as np
from PIL import Image

from milcore.cohort.manifest import Slide
from milcore.runtime import storage
from milcore.store.slide_group import SlideGroup
from milcore.store.store import PatchStore, SlideStatus

PAGE = "cohort.html"
THUMBNAIL_PX = 192
_DIMMED = 0.45


def write_cohort_page(store_uri: str) -> str:
    """Write the page of a store's cohort into it; its URI."""
    store = PatchStore(store_uri)
    rows = list(_rows(store))
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("milcore", "ingestion"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    counts = {state: sum(row["status"] == state for row in rows) for state in ("ok", "quarantined", "missing")}
    page = environment.get_template("overview.html.j2").render(store=store.uri, rows=rows, counts=counts)
    uri = storage.join(store.uri, PAGE)
    storage.write_bytes(uri, page.encode())
    return uri


def _rows(store: PatchStore) -> Iterator[dict[str, Any]]:
    manifest = store.manifest()
    statuses = store.statuses()
    for slide in manifest.slides:
        yield _row(store, slide, statuses[slide.slide_id]) | {"label": manifest.classes[slide.label]}


def _row(store: PatchStore, slide: Slide, status: SlideStatus | None) -> dict[str, Any]:
    attrs = status.attrs if status else {}
    mpp = attrs.get("mpp") or {}
    counts = attrs.get("counts") or {}
    size = attrs.get("size_level0")
    return {
        "slide_id": slide.slide_id,
        "patient_id": slide.patient_id,
        "status": status.state if status else "missing",
        "reason": (status.reason if status else "not ingested yet") or attrs.get("codec_instead") or "",
        "patches": attrs.get("patches", 0),
        "grid": counts.get("grid"),
        "unreadable": counts.get("unreadable"),
        "mpp": mpp.get("level0"),
        "mpp_from": mpp.get("from", ""),
        "size": "" if size is None else f"{size[0]:,} x {size[1]:,}",
        "reader": attrs.get("reader", ""),
        "picture": _picture(store.slide(slide.slide_id)) if status and status.state == "ok" else None,
    }


def _picture(slide: SlideGroup) -> str | None:
    """The thumbnail as a data URI, dimmed where there is no tissue; None where an import has none."""
    if not slide.has_thumbnail:
        return None
    image = Image.fromarray(slide.thumbnail)
    image.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.BOX)
    if slide.tissue_mask is not None:
        mask = Image.fromarray(slide.tissue_mask).resize(image.size, Image.Resampling.NEAREST)
        dimmed = Image.fromarray((np.asarray(image) * _DIMMED).astype(np.uint8))
        image = Image.composite(image, dimmed, mask)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
