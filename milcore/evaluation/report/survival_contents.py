"""Contents of the report on survival as plain data."""

from dataclasses import dataclass
from typing import NamedTuple

import pyarrow as pa

from milcore.evaluation.report.contents import SlideView, SweepTable
from milcore.evaluation.survival_curves import SurvivalModel
from milcore.metrics.classification import Estimate
from milcore.metrics.survival.summary import SurvivalMetrics


class SurvivalSlide(NamedTuple):
    """One test slide: follow-up and predicted risk of its patient, attention and pictures.

    Args:
        view: attention and pictures.
        time: to the event or to censoring, in the unit of the manifest.
        event: True where the event came at that time.
        risk: higher for an earlier event.
        residual: events less those expected until ``time`` (martingale residual); 1 at most.
    """

    view: SlideView
    time: float
    event: bool
    risk: float
    residual: float


class SurvivalCount(NamedTuple):
    """Numbers of patients and events in a split, and their median time."""

    split: str
    patients: int
    events: int
    median_time: float


class SurvivalComparison(NamedTuple):
    """One row of the table that compares models on the test split."""

    name: str
    note: str
    harrell_c: Estimate
    uno_c: Estimate
    integrated_brier_score: Estimate

    @classmethod
    def of(cls, name: str, note: str, metrics: SurvivalMetrics) -> "SurvivalComparison":
        """The row of a model that was measured."""
        values = metrics.overall
        return cls(name, note, values["harrell_c"], values["uno_c"], values["integrated_brier_score"])


@dataclass(frozen=True, slots=True)
class SurvivalReport:
    """Contents of one report on survival.

    Args:
        time: column of the times in the manifest.
        event: column of the events.
        model: of survival, with its words.
        cut_points: times at which it predicts survival; empty where it does not.
        reference: patients that weights of censoring, baseline hazard and cut are estimated of.
        warnings: reasons to read the figures with care.
        sweep: None where the settings came from no sweep.
        slides: of the test split.
    """

    title: str
    time: str
    event: str
    bag: str
    model: SurvivalModel
    cut_points: tuple[float, ...]
    counts: tuple[SurvivalCount, ...]
    reference: str
    metrics: SurvivalMetrics
    warnings: tuple[str, ...]
    comparison: tuple[SurvivalComparison, ...]
    history: pa.Table
    folds: int
    sweep: SweepTable | None
    slides: tuple[SurvivalSlide, ...]
    quarantined: dict[str, str]
    provenance: dict[str, str]
    config: str
