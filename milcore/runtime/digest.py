"""Digests of JSON values."""

import hashlib
import json
import uuid


def digest(value: object) -> str:
    """Sha256 of a JSON value, keys in order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def unique_digest() -> str:
    """A value that equals no digest: for a state that must not count as seen before."""
    return uuid.uuid4().hex
