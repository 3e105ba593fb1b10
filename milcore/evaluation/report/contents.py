"""Contents of the report as plain data."""

from dataclasses import dataclass

import pyarrow as pa

from milcore.evaluation.report.site_contents import SiteResults
from milcore.metrics.classification import Comparison, Estimate, Threshold
from milcore.metrics.curves import Band
from milcore.metrics.wilson import ScoreIntervals

Points = list[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class PictureSizes:
    """Sizes of a slide's pictures: edges in px, patches shown at either end."""

    thumbnail_edge: int
    patch_edge: int
    patches: int

    @classmethod
    def for_slides(cls, slides: int) -> "PictureSizes":
        """Largest sizes with which a report with pictures of so many slides opens quickly."""
        return cls(760, 176, 6) if slides <= FEW_SLIDES else cls(480, 112, 3)


FEW_SLIDES = 60


@dataclass(frozen=True, slots=True)
class ShownPatch:
    """One of the most or least attended patches of a slide.

    Args:
        x: left edge, level-0 px; None, like y and size, where the patch's coordinates are unknown.
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
    """One test slide: label, prediction, attention and pictures.

    Args:
        probabilities: of every class.
        std: standard deviation of the predicted class's probability over the folds, None for one model.
        size_level0: (width, height), level-0 px, None where unknown.
        mpp: um/px at level 0, None where unknown.
        instances: patches of the slide.
        half_mass: smallest number of patches that hold half of the attention.
        entropy: of attention over the largest possible, 1 where attention is flat.
        localisation: within-slide AUROC of attention against the annotation, None where undefined.
        thumbnail: JPEG file, white where the store has coordinates but no picture, None where neither.
        heat: PNG file with transparency, the thumbnail's size; None like thumbnail.
        outline: rings of the annotated regions, level-0 px.
        patches: most attended first.
        lowest: least attended first.
        choice: why the report shows the slide's pictures; empty where it shows those of all slides, None where it
            leaves these out.
    """

    slide_id: str
    patient_id: str
    label: int
    predicted_class: int
    probabilities: tuple[float, ...]
    std: float | None
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
    choice: str | None = ""

    @property
    def error(self) -> float:
        """``1 - probability of the true class``.

        0 is certain and right, 1 is certain and wrong.
        """
        return 1.0 - self.probabilities[self.label]

    @property
    def picture_bytes(self) -> int:
        """Size of all pictures of the slide."""
        patches = [patch.jpeg for patch in (*self.patches, *self.lowest)]
        return sum(len(picture) for picture in (self.thumbnail, self.heat, *patches) if picture is not None)

    @property
    def shown_probability(self) -> float:
        """Probability of the positive class of two, of the predicted one of more."""
        return self.probabilities[1 if len(self.probabilities) == 2 else self.predicted_class]


@dataclass(frozen=True, slots=True)
class SplitCount:
    """Number of patients, and of bags of each class, in a split."""

    split: str
    patients: int
    of_class: tuple[int, ...]

    @property
    def bags(self) -> int:
        """Bags of all classes."""
        return sum(self.of_class)


@dataclass(frozen=True, slots=True)
class Curve:
    """Curve of one class, with the band of its resamples where there is one."""

    name: str
    points: Points
    band: Band | None


@dataclass(frozen=True, slots=True)
class FlippingCurves:
    """Mean probability of the predicted class by the share of patches removed.

    Args:
        bags: number of bags in the mean.
        removed: share of patches removed, 0 to 1.
        most: most attended patches removed first.
        least: least attended patches removed first.
        random: mean over random orders.
    """

    bags: int
    removed: list[float]
    most: list[float]
    least: list[float]
    random: list[float]


@dataclass(frozen=True, slots=True)
class SweepTable:
    """Trials of the sweep whose best settings this run has, and its verdict."""

    trials: pa.Table
    verdict: str


@dataclass(frozen=True, slots=True)
class ReportData:
    """Contents of one report.

    Args:
        bag: unit of a bag, ``slide`` or ``patient``.
        metrics: test values by name.
        of_class: test values by name of each class of more than two, empty for two.
        of_patients: test values of patients, empty where bags are patients'.
        score: the same with their score intervals, which are shown first.
        calibrated: Brier score and ECE after temperature scaling.
        threshold: None for more than two classes.
        warnings: signs that the model reads the site, and reasons not to read attention as an explanation.
        sites: None where fewer than two are known.
        flipping: None where no bag has curves.
        folds: models of the run, 0 for a plain run.
        sweep: None where the settings came from no sweep.
    """

    title: str
    classes: tuple[str, ...]
    bag: str
    counts: tuple[SplitCount, ...]
    metrics: dict[str, Estimate]
    score: ScoreIntervals
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
    sites: SiteResults | None
    comparison: tuple[Comparison, ...]
    roc: tuple[Curve, ...]
    precision_recall: tuple[Curve, ...]
    confusion: list[list[int]]
    reliability: list[tuple[float, float, int]]
    flipping: FlippingCurves | None
    history: pa.Table
    folds: int
    sweep: SweepTable | None
    slides: tuple[SlideView, ...]
    quarantined: dict[str, str]
    provenance: dict[str, str]
    config: str
