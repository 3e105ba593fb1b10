"""Encoder that made features, read from their attributes."""

from collections.abc import Mapping
from typing import Any

from milcore.config import EncoderRecord
from milcore.errors import StoreError

# texts of earlier versions, and those of today for the same computation
EARLIER_TRANSFORMS = {
    "area resample to 224 px; (x - 127) / 128; spatial mean of the last feature map": (
        "area to 224 px; (x / 255 - 0.498039/0.498039/0.498039) / 0.501961/0.501961/0.501961; tokens cls; fp32"
    )
}


def encoder_record(attrs: Mapping[str, Any]) -> EncoderRecord | None:
    """Encoder in the attributes of features; None where they were imported."""
    if "weights_digest" not in attrs:
        return None
    record = EncoderRecord(**{name: attrs[name] for name in EncoderRecord.model_fields if name in attrs})
    return record.model_copy(update={"transform": EARLIER_TRANSFORMS.get(record.transform, record.transform)})


def encoder_id_of_features(name: str, attrs: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Text that imports give of the encoder of all slides' features; None without.

    Args:
        name: of the features.
        attrs: attributes of the features, by slide.

    Raises:
        StoreError: they were imported with several texts, or some without.
    """
    texts = {slide_id: of_slide.get("encoder_id") for slide_id, of_slide in attrs.items()}
    first = next(iter(texts), None)
    for slide_id, text in texts.items():
        if first is not None and text != texts[first]:
            raise StoreError(
                f"features/{name}: expected those of one encoder, got encoder_id {text!r} for slide {slide_id!r} and "
                f"{texts[first]!r} for {first!r}; allowed: one; import them again with --encoder-id"
            )
    return None if first is None else texts[first]


def encoder_of_features(name: str, attrs: Mapping[str, Mapping[str, Any]]) -> EncoderRecord | None:
    """Encoder of the features of all slides; None where they were imported.

    Args:
        name: of the features.
        attrs: attributes of the features, by slide.

    Raises:
        StoreError: they were made by several encoders, or imported in part.
    """
    encoders = {slide_id: encoder_record(of_slide) for slide_id, of_slide in attrs.items()}
    first = next(iter(encoders), None)
    record = None if first is None else encoders[first]
    for slide_id, other in encoders.items():
        if record is None or other is None:
            differing = [] if record is other else ["encoder"]
        else:
            differing = record.differences(other)
        if differing:
            raise StoreError(
                f"features/{name}: expected those of one encoder, got another {' and '.join(differing)} for slide "
                f"{slide_id!r} than for {first!r}; allowed: one; encode all slides under another --name"
            )
    return record
