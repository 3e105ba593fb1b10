"""HTML page of a cohort: thumbnail, tissue, counts, scale and status of every slide.

Self-contained, sorts, filters and pages: no other file, no network. A thumbnail shows the whole slide without its label
and macro images; px without tissue are dimmed, which shows a mask that misses tissue or includes a pen mark. Of a large
cohort the thumbnails of some slides are shown, and the page says which.
"""

import posixpath
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import jinja2
import numpy as np

from milcore import __version__
from milcore.cohort.manifest import Manifest
from milcore.ingestion.slide import unread_text
from milcore.runtime import storage
from milcore.runtime.digest import digest
from milcore.runtime.html import MOST_ROWS, PAGE_ROWS, data_uri, table_script
from milcore.runtime.threads import map_in_threads
from milcore.store.catalogue import Catalogue
from milcore.store.slide_group import SlideGroup
from milcore.store.slide_record import SlideRecord
from milcore.store.store import PatchStore
from milcore.store.thumbnail import thumbnail_jpeg

PAGE = "cohort.html"
THUMBNAIL_PX = 192
MOST_PICTURES = 2_000
SEED = 0
PICTURED_ARRAYS = ("thumbnail", "tissue_mask")


def write_cohort_page(store_uri: str) -> str:
    """Write the page of a store's cohort to the store; return its URI.

    One that would be equal is not written again.
    """
    store = PatchStore(store_uri)
    manifest, catalogue = store.manifest(), store.catalogue()
    records = {
        slide_id: record or SlideRecord(slide_id, reason="not ingested yet")
        for slide_id, record in catalogue.records.items()
    }
    pictured = [record for record in records.values() if _has_thumbnail(record)]
    chosen = choose_pictures(pictured)

    def page(pictures: Mapping[str, str | None]) -> str:
        return _page(store, manifest, records, pictures, len(pictured) - len(chosen))

    uri, digests = storage.join(store.uri, PAGE), _picture_digests(catalogue, chosen)
    own_digest = None if digests is None else _digest_line(page(digests))
    if own_digest is None or _last_line(uri) != own_digest:
        pictures = page(_pictures(catalogue, chosen))
        storage.write_bytes(uri, f"{pictures}{own_digest or ''}".encode())
    return uri


def _page(
    store: PatchStore,
    manifest: Manifest,
    records: Mapping[str, SlideRecord],
    pictures: Mapping[str, str | None],
    pictures_left_out: int,
) -> str:
    rows = [
        _row(records[slide.slide_id])
        | {
            "patient_id": slide.patient_id,
            "label": manifest.class_of(slide),
            "picture": pictures.get(slide.slide_id),
        }
        for slide in manifest.slides[:MOST_ROWS]
    ]
    states = [record.status or "missing" for record in records.values()]
    return (
        _environment()
        .get_template("overview.html.j2")
        .render(
            store=posixpath.basename(store.uri),
            rows=rows,
            slides=len(records),
            pictures=len(pictures),
            pictures_left_out=pictures_left_out,
            page_rows=PAGE_ROWS,
            counts={state: states.count(state) for state in ("ok", "quarantined", "missing")},
            table_script=table_script(),
        )
    )


def _picture_digests(catalogue: Catalogue, records: Sequence[SlideRecord]) -> dict[str, str | None] | None:
    """Digests of what each slide's picture is made of, by the catalogue.

    None where it does not know them all.
    """
    rows = [catalogue.row(record.slide_id) for record in records]
    if None in rows:
        return None
    return {row.slide_id: digest([row.digest(name) for name in PICTURED_ARRAYS]) for row in rows if row is not None}


def _digest_line(page: str) -> str:
    """The last line of a page: its digest.

    Args:
        page: with the digests of pictures in place of them.
    """
    return f"\n<!-- {digest([__version__, page])} -->\n"


def _last_line(uri: str) -> str | None:
    """The last line of a stored page; None without a page."""
    try:
        return storage.read_range(uri, -len(_digest_line("")), None).decode(errors="replace")
    except FileNotFoundError:
        return None


def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("milcore", "ingestion"), autoescape=True, undefined=jinja2.StrictUndefined
    )


def _has_thumbnail(record: SlideRecord) -> bool:
    return record.status == "ok" and SlideGroup("", record).has_thumbnail


def choose_pictures(pictured: Sequence[SlideRecord]) -> Sequence[SlideRecord]:
    """Slides whose thumbnails the page shows: all where they are few.

    Of more, a quarter each have the smallest and the largest share of tissue, and the most unreadable tiles, where a
    mask is likeliest wrong; the others are drawn at random. A slide that two rules choose counts for the first.
    """
    if len(pictured) <= MOST_PICTURES:
        return pictured
    share = np.array([_tissue_share(record) for record in pictured])
    unreadable = np.array([0 if record.counts is None else record.counts.unreadable for record in pictured])
    random = np.random.default_rng(SEED).permutation(len(pictured))
    chosen: dict[int, None] = {}
    orders = [np.argsort(values, kind="stable") for values in (share, -share, -unreadable)]
    for order in (*orders, random):
        chosen |= dict.fromkeys(islice((k for k in order.tolist() if k not in chosen), MOST_PICTURES // 4))
    return [pictured[k] for k in sorted(chosen)]


def _tissue_share(record: SlideRecord) -> float:
    """Share of the grid's tiles that have tissue; one half where it is unknown."""
    return record.counts.tissue / record.counts.grid if record.counts is not None and record.counts.grid else 0.5


def _pictures(catalogue: Catalogue, records: Sequence[SlideRecord]) -> dict[str, str | None]:
    """Thumbnail of each slide as a data URI; None where an import has none."""
    groups = catalogue.slides([record.slide_id for record in records])
    return dict(zip(groups, map_in_threads(_picture, groups.values(), storage.CONCURRENT_REQUESTS), strict=True))


def _row(record: SlideRecord) -> dict[str, Any]:
    size, mpp, counts, scan = record.size_level0, record.mpp, record.counts, record.scan
    return {
        "slide_id": record.slide_id,
        "status": record.status or "missing",
        "reason": record.reason or "; ".join(_notes(record)),
        "patches": record.instances,
        "grid": None if counts is None else counts.grid,
        "unreadable": None if counts is None else counts.unreadable,
        "mpp": None if mpp is None else mpp.level0,
        "mpp_from": "" if mpp is None else mpp.origin,
        "size": "" if size is None else f"{size[0]:,} x {size[1]:,}",
        "reader": "" if scan is None else scan.reader,
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
