"""Contents of the report on regression as plain data."""

from dataclasses import dataclass
from typing import NamedTuple

import pyarrow as pa

from milcore.evaluation.report.contents import SlideView, SweepTable
from milcore.metrics.classification import Estimate
from milcore.metrics.regression.scale import TargetScale
from milcore.metrics.regression.summary import RegressionMetrics, ValuePredictions


class RegressionSlide(NamedTuple):
    """One test slide: true and predicted value of its bag, attention and pictures."""

    view: SlideView
    true: float
    predicted: float

    @property
    def error(self) -> float:
        """Predicted less true value."""
        return self.predicted - self.true


class RegressionCount(NamedTuple):
    """Patients and bags of a split; mean, standard deviation and ends of its values."""

    split: str
    patients: int
    bags: int
    mean: float
    deviation: float
    lowest: float
    highest: float


class RegressionComparison(NamedTuple):
    """One row of the table that compares models on the test split."""

    name: str
    note: str
    r2: Estimate
    mae: Estimate
    spearman: Estimate

    @classmethod
    def of(cls, name: str, note: str, metrics: RegressionMetrics) -> "RegressionComparison":
        """The row of a model that was measured."""
        values = metrics.overall
        return cls(name, note, values["r2"], values["mae"], values["spearman"])


@dataclass(frozen=True, slots=True)
class RegressionReport:
    """Contents of one report on regression.

    Args:
        column: of the values in the manifest.
        bag: unit of a bag, ``slide`` or ``patient``.
        scale: mean and standard deviation of the training values; of folds their mean.
        huber_delta: of the loss, in standard deviations.
        test: true and predicted values of the test bags.
        warnings: reasons to read the figures with care.
        sweep: None where the settings came from no sweep.
        slides: of the test split.
    """

    title: str
    column: str
    bag: str
    scale: TargetScale
    huber_delta: float
    counts: tuple[RegressionCount, ...]
    test: ValuePredictions
    metrics: RegressionMetrics
    warnings: tuple[str, ...]
    comparison: tuple[RegressionComparison, ...]
    history: pa.Table
    folds: int
    sweep: SweepTable | None
    slides: tuple[RegressionSlide, ...]
    quarantined: dict[str, str]
    provenance: dict[str, str]
    config: str
