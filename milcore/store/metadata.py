"""``zarr.json`` of the groups and arrays of a store.

The attributes hold the sha256 of the whole object, so that a changed byte of it is noticed.
"""

from collections.abc import Mapping
from typing import Any

from milcore.runtime import storage
from milcore.runtime.digest import OWN_DIGEST, with_own_digest, without_own_digest


def metadata_uri(uri: str) -> str:
    """The ``zarr.json`` of a group or array."""
    return storage.join(uri, "zarr.json")


def write_group(uri: str, attributes: Mapping[str, Any]) -> None:
    """Write the metadata of a group atomically."""
    write_metadata(uri, {"zarr_format": 3, "node_type": "group", "attributes": dict(attributes)})


def write_metadata(uri: str, metadata: Mapping[str, Any]) -> None:
    """Write a ``zarr.json`` atomically, with its digest among the attributes."""
    own_digest = with_own_digest(metadata)[OWN_DIGEST]
    attributes = {**metadata["attributes"], OWN_DIGEST: own_digest}
    storage.write_json(metadata_uri(uri), {**metadata, "attributes": attributes})


def read_metadata(uri: str) -> dict[str, Any]:
    """Read the metadata of a group or array; ``parse_metadata``.

    Raises:
        FileNotFoundError: there is none.
        DamageError: it is not what was written.
    """
    return parse_metadata(storage.read_bytes(metadata_uri(uri)), metadata_uri(uri))


def parse_metadata(data: bytes, uri: str) -> dict[str, Any]:
    """Parse and check the bytes of a ``zarr.json``; its own digest is left out.

    Raises:
        DamageError: it is not what was written.
    """
    metadata = dict(storage.parse_json(data, uri))
    attributes = dict(metadata.get("attributes", {}))
    own_digest = {OWN_DIGEST: attributes.pop(OWN_DIGEST)} if OWN_DIGEST in attributes else {}
    return without_own_digest({**metadata, "attributes": attributes, **own_digest}, uri)
