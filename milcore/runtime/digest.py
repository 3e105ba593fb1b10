"""Digests of JSON values."""

import hashlib
import json
import uuid


def digest(value: object) -> str:
    """Sha256 of a JSON value with sorted keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def unique_digest() -> str:
    """A random value that equals no digest, so that no cached result is reused."""
    return uuid.uuid4().hex
