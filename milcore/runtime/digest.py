"""Digests of JSON values and tables, some of which carry their own."""

import hashlib
import json
import uuid
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from milcore.errors import DamageError

OWN_DIGEST = "sha256"


def digest(value: object) -> str:
    """Sha256 of a JSON value with sorted keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def unique_digest() -> str:
    """A random value that equals no digest, so that no cached result is reused."""
    return uuid.uuid4().hex


def with_own_digest(values: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON object with a member ``sha256``: the digest of all others."""
    return {**values, OWN_DIGEST: digest(values)}


def without_own_digest(values: Mapping[str, Any], uri: str) -> dict[str, Any]:
    """Check a JSON object by its member ``sha256`` and return the others.

    An object without that member, of an earlier version, is not checked.

    Args:
        values: as ``with_own_digest`` returned it.
        uri: that it was read from.

    Raises:
        DamageError: it is not what was written.
    """
    others = {name: value for name, value in values.items() if name != OWN_DIGEST}
    if OWN_DIGEST in values and values[OWN_DIGEST] != digest(others):
        raise DamageError(f"{uri}: expected the content that was written, got another (sha256 differs); restore it")
    return others


def table_digest(table: pa.Table) -> str:
    """Sha256 of a table's columns (names, types, values) and of its schema's metadata."""
    metadata = sorted((table.schema.metadata or {}).items())
    sha256 = hashlib.sha256(repr(metadata).encode())
    for field, column in zip(table.schema, table.columns, strict=True):
        sha256.update(json.dumps([field.name, str(field.type), len(column), column.null_count]).encode())
        if column.null_count or not pa.types.is_primitive(field.type):
            sha256.update(json.dumps(column.to_pylist(), default=str).encode())
        else:
            sha256.update(column.to_numpy().tobytes())
    return sha256.hexdigest()
