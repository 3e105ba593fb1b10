"""What the report shows, as plain data: made by evaluation, or by hand in a test."""

from dataclasses import dataclass

import pyarrow as pa

from milcore.metrics import Comparison, Estimate, Threshold


@dataclass(frozen=True, slots=True)
class TopPatch:
    """One of a slide's most attended patches.

    Args:
        x: left edge, level-0 px; None, like y and size, where the patch's place is unknown.
        y: upper edge, level-0 px.
        size: edge, level-0 px.
        times_mean: attention weight over the slide's mean weight.
        jpeg: the patch as a JPEG file.
    """

    x: int | None
    y: int | None
    size: float | None
    times_mean: float
    jpeg: bytes


@dataclass(frozen=True, slots=True)
class SlideView:
    """One test slide: what it is, what the model says of it, and where it looked.

    Args:
        probability: of the positive class.
        size_level0: (width, height), level-0 px, None where unknown.
        mpp: um/px at level 0, None where unknown.
        instances: patches of the slide.
        half_mass: the fewest patches that hold half of the attention.
        localisation: within-slide AUROC of attention against the annotation, None where undefined.
        thumbnail: JPEG file, white where the store has places but no picture, None where it has neither.
        heat: PNG file with transparency, the thumbnail's size; None like thumbnail.
        outline: rings of the annotated regions, level-0 px.
    """

    slide_id: str
    patient_id: str
    label: int
    probability: float
    size_level0: tuple[int, int] | None
    mpp: float | None
    instances: int
    half_mass: int
    localisation: float | None
    thumbnail: bytes | None
    heat: bytes | None
    outline: tuple[tuple[tuple[float, float], ...], ...]
    patches: tuple[TopPatch, ...]

    @property
    def error(self) -> float:
        """``|probability - label|``: 0 is certain and right, 1 certain and wrong."""
        return abs(self.probability - self.label)


@dataclass(frozen=True, slots=True)
class SplitCount:
    """How many patients and slides of each class a split holds."""

    split: str
    patients: int
    negative: int
    positive: int


@dataclass(frozen=True, slots=True)
class ReportData:
    """All of a report. ``classes[1]`` is the positive class; ``metrics`` holds test values by name."""

    title: str
    classes: tuple[str, ...]
    counts: tuple[SplitCount, ...]
    metrics: dict[str, Estimate]
    threshold: Threshold
    localised: int
    not_localised: dict[str, str]
    comparison: tuple[Comparison, ...]
    roc: list[tuple[float, float]]
    confusion: list[list[int]]
    reliability: list[tuple[float, float, int]]
    history: pa.Table
    trials: pa.Table | None
    slides: tuple[SlideView, ...]
    quarantined: dict[str, str]
    provenance: dict[str, str]
    config: str
