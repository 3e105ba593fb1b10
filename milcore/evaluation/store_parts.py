"""Parts of the predictions of a store: the bags and the file of each.

::

    <out>/predictions/part-<number>-<digest>.parquet   a row per slide

A part is a fixed number of bags, in the order of the store's manifest. The digest is of its slides, their instances
and all settings: a part that is there need not be computed, whoever wrote it, and one that changed has another name.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from milcore.cohort.manifest import Manifest
from milcore.runtime.digest import digest
from milcore.store.catalogue import Catalogue

# a worker that is killed loses the part in work: some ten seconds of slides with 5,000 instances each
BAGS_PER_PART = 128
DIGEST_CHARACTERS = 16
NOT_INGESTED = "the store has no such slide; run milcore ingest or milcore import again"


class StoreSlide(NamedTuple):
    """Slide of a store's manifest.

    Args:
        reason: why it cannot be scored; None where it can.
    """

    slide_id: str
    patient_id: str
    reason: str | None


class Part(NamedTuple):
    """Bags that are scored by one task and lie in one file.

    Args:
        file: its name.
        bags: the slides of each.
    """

    file: str
    bags: tuple[tuple[StoreSlide, ...], ...]

    @property
    def usable(self) -> list[str]:
        """Ids of the slides that can be scored."""
        return [slide.slide_id for bag in self.bags for slide in bag if slide.reason is None]


def store_slides(manifest: Manifest, catalogue: Catalogue) -> list[StoreSlide]:
    """Every slide of a manifest, in its order."""
    records = catalogue.records
    slides = []
    for slide in manifest.slides:
        record = records[slide.slide_id]
        reason = NOT_INGESTED if record is None else record.reason
        slides.append(StoreSlide(slide.slide_id, slide.patient_id, reason))
    return slides


def divide(
    slides: Sequence[StoreSlide], instances: Mapping[str, str], settings: object, *, by_patient: bool
) -> list[Part]:
    """Divide slides into parts.

    Args:
        slides: of the manifest, in its order.
        instances: digest of the instances of each slide that can be scored, by its id.
        settings: all else that a prediction depends on, as JSON.
        by_patient: a bag is all slides of a patient, else a slide.
    """
    bags: dict[str, list[StoreSlide]] = {}
    for slide in slides:
        bags.setdefault(slide.patient_id if by_patient else slide.slide_id, []).append(slide)
    in_order = [tuple(bag) for bag in bags.values()]
    parts = []
    for number, start in enumerate(range(0, len(in_order), BAGS_PER_PART)):
        of_part = tuple(in_order[start : start + BAGS_PER_PART])
        content = [[[*slide, instances.get(slide.slide_id)] for slide in bag] for bag in of_part]
        name = digest({"settings": settings, "bags": content})[:DIGEST_CHARACTERS]
        parts.append(Part(f"part-{number:06d}-{name}.parquet", of_part))
    return parts
