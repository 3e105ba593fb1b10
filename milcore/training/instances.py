"""Instances of a run: digest of their content, and settings that made them."""

import functools
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from milcore.config import IngestConfig, InstanceOrigin, PoolingName, TrainConfig, parse_config, read_places
from milcore.encoders.record import encoder_id_of_features, encoder_of_features
from milcore.errors import StoreError
from milcore.runtime.digest import digest
from milcore.store.catalogue import Catalogue
from milcore.store.slide_group import SlideGroup, check_coords
from milcore.store.slide_record import SlideRecord

# settings of ingestion without effect on a slide that is ok
FREE_SETTINGS = {"default_mpp", "mpp_from_magnification", "max_unreadable"}


class Instances(NamedTuple):
    """Digests of the instances of slides, and the settings that made them.

    Args:
        digests: of each slide's features or patches, by its id.
    """

    digests: Mapping[str, str]
    origin: InstanceOrigin

    @property
    def digest(self) -> str:
        """Sha256 of the digests of all slides."""
        return digest(self.digests)


def read_instances(
    catalogue: Catalogue,
    config: TrainConfig,
    slide_ids: Sequence[str],
    poolings: Collection[PoolingName] | None = None,
) -> Instances:
    """Read the digest and the origin of the slides' features, or of their patches.

    Args:
        catalogue: of the store.
        config: whose instances they are.
        slide_ids: of the slides.
        poolings: of a sweep; None: that of the config.

    Raises:
        StoreError: slides lack these features, or patches, or their features are of several encoders or of other
            patches, or coords that the pooling reads.
    """
    slides = catalogue.slides(slide_ids)
    if read_places([config.pooling] if poolings is None else poolings):
        check_coords(slides.values())
    if config.features is None:
        attrs = {}
        digests = {slide_id: slide.patches_digest for slide_id, slide in slides.items()}
    else:
        attrs = catalogue.map_slides(functools.partial(_feature_attrs, name=config.features), slide_ids)
        digests = {slide_id: of_slide.get("digest") for slide_id, of_slide in attrs.items()}
    _check_complete(digests, config.features)
    encoder = encoder_id = None
    if config.features is not None:
        _check_patches(slides, attrs, config.features)
        encoder = encoder_of_features(config.features, attrs)
        encoder_id = encoder_id_of_features(config.features, attrs)
    records = [slide.record for slide in slides.values()]
    origin = InstanceOrigin(
        ingestion=_ingestion(records), imports=_imports(records), encoder=encoder, encoder_id=encoder_id
    )
    return Instances({slide_id: text for slide_id, text in digests.items() if text is not None}, origin)


def _feature_attrs(slide: SlideGroup, name: str) -> dict[str, Any]:
    """Attributes of a slide's features; empty where it has none."""
    return slide.stored_feature_attrs(name) or {}


def _check_complete(digests: Mapping[str, str | None], features: str | None) -> None:
    """Check that every slide has instances.

    Raises:
        StoreError: slides lack these features, or patches.
    """
    lacking = sorted(slide_id for slide_id, digest in digests.items() if digest is None)
    if lacking and features is None:
        raise StoreError(
            f"{len(lacking)} of {len(digests)} slides were imported without patches ({', '.join(lacking[:5])} …); "
            "train on their features by --features"
        )
    if lacking:
        raise StoreError(
            f"{len(lacking)} of {len(digests)} slides have no features/{features} ({', '.join(lacking[:5])} …); "
            "run milcore encode or name others by --features"
        )


def _check_patches(slides: Mapping[str, SlideGroup], attrs: Mapping[str, Mapping[str, Any]], features: str) -> None:
    """Check that the features are of the patches that the slides have now.

    Raises:
        StoreError: slides whose features are of other patches.
    """
    stale = sorted(
        slide_id
        for slide_id, slide in slides.items()
        if attrs[slide_id].get("patches_digest", slide.patches_digest) != slide.patches_digest
    )
    if stale:
        raise StoreError(
            f"features/{features}: expected those of the slides' patches, got those of others for {len(stale)} slides "
            f"({', '.join(stale[:5])} …); run milcore encode again"
        )


def _ingestion(records: Sequence[SlideRecord]) -> tuple[IngestConfig, ...]:
    """Settings of the ingested slides, one of each kind, in order of the slides."""
    distinct: dict[str, IngestConfig] = {}
    for record in records:
        if record.import_origin is None and record.parameters is not None:
            settings = {name: value for name, value in record.parameters.items() if name != "slide_mpp"}
            config = parse_config(IngestConfig, settings)
            distinct.setdefault(config.model_dump_json(exclude=FREE_SETTINGS), config)
    return tuple(distinct.values())


def _imports(records: Sequence[SlideRecord]) -> tuple[str, ...]:
    """Formats of the imported slides."""
    return tuple(sorted({record.import_origin.format for record in records if record.import_origin is not None}))
