"""What the report shows, as plain data: made by evaluation, or by hand in a test."""

from dataclasses import dataclass

import pyarrow as pa

from milcore.metrics.classification import Comparison, Estimate, Threshold
from milcore.metrics.curves import Band

Points = list[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Picture:
    """How large a slide's pictures are: edges in px, and how many patches are shown at either end."""

    thumbnail_edge: int
    patch_edge: int
    patches: int

    @classmethod
    def for_slides(cls, slides: int) -> "Picture":
        """As large as keeps a report of so many slides quick to open."""
        return cls(760, 176, 6) if slides <= FEW_SLIDES else cls(480, 112, 3)


FEW_SLIDES = 60


@dataclass(frozen=True, slots=True)
class ShownPatch:
    """One of a slide's most, or least, attended patches.

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
        called: the class it is called.
        probabilities: of every class.
        spread: standard deviation of the called class's probability over the folds, None for one model.
        size_level0: (width, height), level-0 px, None where unknown.
        mpp: um/px at level 0, None where unknown.
        instances: patches of the slide.
        half_mass: the fewest patches that hold half of the attention.
        entropy: of attention over the largest possible, 1 where it is flat.
        localisation: within-slide AUROC of attention against the annotation, None where undefined.
        thumbnail: JPEG file, white where the store has places but no picture, None where it has neither.
        heat: PNG file with transparency, the thumbnail's size; None like thumbnail.
        outline: rings of the annotated regions, level-0 px.
        patches: most attended first.
        lowest: least attended first.
    """

    slide_id: str
    patient_id: str
    label: int
    called: int
    probabilities: tuple[float, ...]
    spread: float | None
    size_level0: tuple[int, int] | None
    mpp: float | None
    instances: int
    half_mass: int
    entropy: float
    localisation: float | None
    thumbnail: bytes | None
    heat: bytes | None
    outline: tuple[tuple[tuple[float, float], ...], ...]
    patches: tuple[ShownPatch, ...]
    lowest: tuple[ShownPatch, ...]

    @property
    def error(self) -> float:
        """``1 - probability of the true class``: 0 is certain and right, 1 certain and wrong."""
        return 1.0 - self.probabilities[self.label]

    @property
    def picture_bytes(self) -> int:
        """Of all its pictures."""
        patches = [patch.jpeg for patch in (*self.patches, *self.lowest)]
        return sum(len(picture) for picture in (self.thumbnail, self.heat, *patches) if picture is not None)

    @property
    def shown_probability(self) -> float:
        """Of the positive class of two, of the called one of more."""
        return self.probabilities[1 if len(self.probabilities) == 2 else self.called]


@dataclass(frozen=True, slots=True)
class SplitCount:
    """How many patients, and bags of each class, a split holds."""

    split: str
    patients: int
    of_class: tuple[int, ...]

    @property
    def bags(self) -> int:
        """Of all classes."""
        return sum(self.of_class)


@dataclass(frozen=True, slots=True)
class Curve:
    """A curve of one class, with the band of its resamples (empty where none was drawn)."""

    name: str
    points: Points
    band: Band | None


@dataclass(frozen=True, slots=True)
class FlippingCurves:
    """Mean probability of the called class by the share of patches taken out, over so many bags."""

    bags: int
    removed: list[float]
    most: list[float]
    least: list[float]
    random: list[float]


@dataclass(frozen=True, slots=True)
class Sweep:
    """The trials of which this run's settings are the best, and whether that one can be told from the next."""

    trials: pa.Table
    verdict: str


@dataclass(frozen=True, slots=True)
class ReportData:
    """All of a report.

    Args:
        bag: what a bag is, ``slide`` or ``patient``.
        metrics: test values by name.
        of_class: test values by name of each class of more than two, empty for two.
        of_patients: test values of patients, empty where bags are patients'.
        calibrated: Brier score and ECE after temperature scaling.
        threshold: None for more than two classes.
        warnings: why attention should not be read as an explanation.
        flipping: None where no bag could be followed.
        folds: models of the run, 0 for a plain run.
        sweep: None where the settings came from no sweep.
    """

    title: str
    classes: tuple[str, ...]
    bag: str
    counts: tuple[SplitCount, ...]
    metrics: dict[str, Estimate]
    auroc_delong: Estimate
    of_class: tuple[dict[str, Estimate], ...]
    of_patients: dict[str, Estimate]
    threshold: Threshold | None
    temperature: float
    temperature_origin: str
    calibrated: dict[str, Estimate]
    localised: int
    not_localised: dict[str, str]
    warnings: tuple[str, ...]
    comparison: tuple[Comparison, ...]
    roc: tuple[Curve, ...]
    precision_recall: tuple[Curve, ...]
    confusion: list[list[int]]
    reliability: list[tuple[float, float, int]]
    flipping: FlippingCurves | None
    history: pa.Table
    folds: int
    sweep: Sweep | None
    slides: tuple[SlideView, ...]
    quarantined: dict[str, str]
    provenance: dict[str, str]
    config: str
