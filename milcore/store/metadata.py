"""``zarr.json`` of the groups and arrays of a store.

The attributes hold the sha256 of the whole object, so that a changed byte of it is noticed.
"""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from milcore.errors import DamageError
from milcore.runtime import storage
from milcore.runtime.digest import OWN_DIGEST, with_own_digest, without_own_digest


def metadata_uri(uri: str) -> str:
    """The ``zarr.json`` of a group or array."""
    return storage.join(uri, "zarr.json")


def array_attributes(slide_id: str, name: str) -> dict[str, str]:
    """Attributes of an array that tell it from those of other slides and names."""
    return {"slide_id": slide_id, "array": name}


def write_group(uri: str, attributes: Mapping[str, Any]) -> bytes:
    """Write the metadata of a group atomically; return the bytes."""
    return write_metadata(uri, {"zarr_format": 3, "node_type": "group", "attributes": dict(attributes)})


def write_metadata(uri: str, metadata: Mapping[str, Any]) -> bytes:
    """Write a ``zarr.json`` atomically, with its digest among the attributes; return the bytes."""
    own_digest = with_own_digest(metadata)[OWN_DIGEST]
    data = storage.json_bytes({**metadata, "attributes": {**metadata["attributes"], OWN_DIGEST: own_digest}})
    storage.write_bytes(metadata_uri(uri), data)
    return data


def read_array_metadata(uri: str) -> dict[str, Any]:
    """Read the metadata of an array; ``parse_metadata``.

    Raises:
        FileNotFoundError: there is none.
        DamageError: it is not what was written, or that of a group.
    """
    return parse_array_metadata(storage.read_bytes(metadata_uri(uri)), uri)


def parse_array_metadata(data: bytes, uri: str) -> dict[str, Any]:
    """Parse and check the ``zarr.json`` of an array, as ``parse_metadata``.

    Args:
        data: its bytes.
        uri: of the array.

    Raises:
        DamageError: it is not what was written, or that of a group.
    """
    metadata = parse_metadata(data, metadata_uri(uri))
    if metadata.get("node_type") != "array":
        raise _other_metadata(uri, f"that of a {metadata.get('node_type')}")
    return metadata


def read_due_metadata(uri: str, place: str, remedy: str) -> bytes:
    """Read the ``zarr.json`` of an array that is due.

    Args:
        uri: of the array.
        place: names the array in errors, such as ``slide 'S03': features/x``.
        remedy: command that makes the array again.

    Raises:
        DamageError: there is none.
    """
    try:
        return storage.read_bytes(metadata_uri(uri))
    except FileNotFoundError:
        raise DamageError(
            f"{place}: expected an array, got no object at {metadata_uri(uri)}; restore it, or {remedy}"
        ) from None


@contextlib.contextmanager
def array_metadata_expected(uri: str) -> Iterator[None]:
    """Context that takes the metadata of an array apart.

    Others may have written it.

    Raises:
        DamageError: it lacks what milcore writes, or holds it in another form.
    """
    try:
        yield
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise _other_metadata(uri, f"other ({type(error).__name__}: {error})") from None


def _other_metadata(uri: str, got: str) -> DamageError:
    return DamageError(
        f"{metadata_uri(uri)}: expected the metadata of an array that milcore writes, got {got}; restore it"
    )


def parse_metadata(data: bytes, uri: str) -> dict[str, Any]:
    """Parse and check the bytes of a ``zarr.json``; its own digest is left out.

    Raises:
        DamageError: it is not what was written.
    """
    metadata = storage.parse_json(data, uri)
    attributes = metadata.get("attributes", {}) if isinstance(metadata, dict) else None
    if not isinstance(attributes, dict):
        raise DamageError(f"{uri}: expected the metadata of a group or array, got other JSON; restore the object")
    attributes = dict(attributes)
    own_digest = {OWN_DIGEST: attributes.pop(OWN_DIGEST)} if OWN_DIGEST in attributes else {}
    return without_own_digest({**metadata, "attributes": attributes, **own_digest}, uri)
