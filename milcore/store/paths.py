"""Places of a store's folders and files."""

from milcore.runtime import storage

SLIDES = "slides"
_GROUP = ".zarr"


def group_uri(store_uri: str, slide_id: str) -> str:
    """URI of a slide's Zarr group."""
    return storage.join(store_uri, SLIDES, f"{slide_id}{_GROUP}")


def source_uri(store_uri: str, slide_id: str) -> str:
    """URI of the version of a slide's file at the last ingestion."""
    return storage.join(store_uri, "sources", f"{slide_id}.json")


def group_ids(store_uri: str) -> set[str]:
    """Ids of the slides that have a folder, complete or not.

    One listing for each 1,000.
    """
    names = storage.names(storage.join(store_uri, SLIDES))
    return {name.removesuffix(_GROUP) for name in names if name.endswith(_GROUP)}
