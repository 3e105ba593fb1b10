"""Computes features/<name> of every slide of a store, with a frozen encoder, doing only what is missing.

A slide is one unit of work with one writer; the features are complete only once their digest is written.
"""

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, Protocol

import numpy as np
import torch
from jaxtyping import Float16

from milcore.allocator import keep_freed_memory
from milcore.config import EncodeConfig
from milcore.encoders import FROZEN_ENCODERS
from milcore.encoders.efficientnet import EfficientNetLite0
from milcore.errors import InputError, StoreError
from milcore.store import PatchStore, SlideGroup


class EncodedSlide(NamedTuple):
    """What became of one slide."""

    slide_id: str
    patches: int
    skipped: bool


class SlideMap(Protocol):
    """Applies a function to slide ids, here or on many machines, and hands results back as they come."""

    def __call__(self, function: Callable[[str], EncodedSlide], items: Iterable[str], /) -> Iterable[EncodedSlide]:
        """The results, in any order."""
        ...


def encode(
    store_uri: str, config: EncodeConfig, device: str = "cpu", map_slides: SlideMap = map
) -> Iterator[EncodedSlide]:
    """Encode every slide of the store that lacks these features.

    Args:
        store_uri: the patch store.
        config: encoder, name of the features and batch size.
        device: where each worker computes, ``cpu`` or ``cuda``.
        map_slides: how slides are dealt to workers; the default takes them one by one here.

    Raises:
        InputError: the store holds no slide that is ok.
    """
    slide_ids = PatchStore(store_uri).slide_ids()
    if not slide_ids:
        raise InputError(f"{store_uri} holds no slide that is ok; run milcore ingest first")
    yield from map_slides(functools.partial(encode_slide, store_uri, config, device), slide_ids)


def encode_slide(store_uri: str, config: EncodeConfig, device: str, slide_id: str) -> EncodedSlide:
    """Encode one slide unless its features of that name are there and come from the same patches and weights.

    Raises:
        StoreError: features of that name were made by another encoder.
    """
    slide = PatchStore(store_uri).slide(slide_id)
    encoder = load_encoder(config.encoder, device)
    attributes = {
        "encoder": encoder.name,
        "weights_digest": encoder.weights_digest,
        "transform": encoder.transform,
        "patches_digest": slide.patches_digest,
    }
    name = config.features_name
    if slide.has_features(name):
        found = slide.feature_attrs(name)
        changed = [key for key in attributes if found.get(key) != attributes[key]]
        if not changed:
            return EncodedSlide(slide_id, len(slide), skipped=True)
        if changed != ["patches_digest"]:
            raise StoreError(
                f"features/{name} of slide {slide_id!r} were made with another {', '.join(changed)}; "
                "give these features another --name"
            )
    slide.write_features(name, encode_patches(slide, encoder, config.patches_per_batch), attributes)
    return EncodedSlide(slide_id, len(slide), skipped=False)


def encode_patches(
    slide: SlideGroup, encoder: EfficientNetLite0, patches_per_batch: int
) -> Float16[np.ndarray, "patch feature"]:
    """Features of all patches of a slide, a batch of patches in memory at a time."""
    features = np.empty((len(slide), encoder.width), np.float16)
    for start in range(0, len(slide), patches_per_batch):
        stop = min(start + patches_per_batch, len(slide))
        features[start:stop] = encoder(torch.from_numpy(slide.patches(start, stop))).numpy()
    return features


@functools.lru_cache(maxsize=1)
def load_encoder(name: str, device: str) -> EfficientNetLite0:
    """The frozen encoder of that name, loaded once per process.

    Raises:
        InputError: the device is not there.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("--use-gpu: no CUDA device here; run on a machine with a GPU or leave the flag out")
    keep_freed_memory()
    return FROZEN_ENCODERS[name](torch.device(device))
