"""Features to compute: their name, their slides, and each slide's outcome.

Without torch: a step that has a job encode needs no more.
"""

import functools
from typing import NamedTuple

from milcore.config import MAX_MEGAPIXELS_PER_BATCH, EncodeConfig
from milcore.encoders.spec import parse_spec
from milcore.errors import InputError
from milcore.store.feature_type import FeatureType
from milcore.store.store import PatchStore


class EncodedSlide(NamedTuple):
    """Outcome of one slide.

    Args:
        slide_id: of the slide.
        patches: number of patches.
        skipped: True where the features were there already.
        reason: of a failure; None where the slide has features.
        feature_type: in which the features are stored; None where there are none.
        metadata: ``zarr.json`` of the features; None where there are none.
        record_digest: of the slide's record as it was read; None where there are no features.
    """

    slide_id: str
    patches: int
    skipped: bool
    reason: str | None = None
    feature_type: FeatureType | None = None
    metadata: bytes | None = None
    record_digest: str | None = None


def slides_to_encode(store_uri: str, config: EncodeConfig) -> dict[str, int]:
    """Number of patches of every slide to encode, in manifest order.

    0 of slides that are incomplete, whose encoding says so.

    Raises:
        InputError: there is no such slide, or a batch of their patches is beyond any device's memory.
    """
    records = PatchStore(store_uri).records()
    slides = {
        name: record.instances if record else 0
        for name, record in records.items()
        if record is None or record.status == "ok"
    }
    edge = max((record.patch_size or 0 for record in records.values() if record), default=0)
    if config.patches_per_batch * edge**2 > MAX_MEGAPIXELS_PER_BATCH * 1e6:
        raise InputError(
            f"patches_per_batch: expected at most {MAX_MEGAPIXELS_PER_BATCH:,} megapixels in a batch, got "
            f"{config.patches_per_batch} patches of {edge} px; allowed: {int(MAX_MEGAPIXELS_PER_BATCH * 1e6 / edge**2)}"
        )
    if not any(record and record.status == "ok" for record in records.values()):
        raise InputError(
            f"store: expected slides with status ok, got none in the manifest of {store_uri}; run milcore ingest first"
        )
    return slides


def with_feature_name(config: EncodeConfig) -> EncodeConfig:
    """The config with the name of its features set, by default ``default_name``."""
    if config.name is not None:
        return config
    return config.model_copy(update={"name": default_name(config.encoder)})


@functools.lru_cache(maxsize=8)
def default_name(encoder: str) -> str:
    """Default name of the features of an encoder.

    The spec string if it is a name alone, else the encoder's name or kind and the first 8 hex digits of the weights'
    digest. Options are in the attributes of the features only: features with other options need another name.
    """
    spec = parse_spec(encoder)
    if spec.is_bare_name:
        return spec.name
    from milcore.encoders.frozen import digest_of_spec  # noqa: PLC0415 - torch, where there are weights to read

    return f"{spec.name}-{digest_of_spec(encoder)[:8]}"
