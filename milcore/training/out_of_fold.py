"""Metrics of the slides that the folds of a run left out: ``out_of_fold.json``."""

import math
from typing import Any, NamedTuple

from milcore.metrics.classification import Estimate


class OutOfFold(NamedTuple):
    """Pooled AUROC of the slides that folds left out, and each fold's.

    Undefined where they are of one class, or more than two. Models of different folds are only roughly on one scale, so
    the pooled AUROC may lie below the mean of the folds'.

    Args:
        folds: number of models.
        slides: number of bags, each predicted by a model that saw none of its patient.
        auroc: with Newcombe's interval; of an earlier version with that of resampled patients.
        resampled: the same with the interval from resampled patients.
        fold_auroc: of each fold; NaN where undefined, none with more than two classes.
    """

    folds: int
    slides: int
    auroc: Estimate
    resampled: Estimate
    fold_auroc: tuple[float, ...]

    @property
    def line(self) -> str:
        """Models, pooled AUROC and interval in one line."""
        return f"{self.folds} models; pooled AUROC of the slides left out {self.auroc}"

    def to_json(self) -> dict[str, object]:
        """The content of the file."""
        return {
            "folds": self.folds,
            "slides": self.slides,
            "auroc": _or_none(self.auroc.value),
            "interval": _ends(self.resampled),
            "auroc_newcombe": _ends(self.auroc),
            "fold_auroc": [_or_none(value) for value in self.fold_auroc] or None,
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "OutOfFold":
        """The metrics of a file's content."""
        value = _or_nan(values["auroc"])
        resampled = Estimate(value, *(values["interval"] or ()))
        newcombe = values.get("auroc_newcombe")
        auroc = resampled if newcombe is None else Estimate(value, *newcombe)
        return cls(values["folds"], values["slides"], auroc, resampled, tuple(map(_or_nan, values["fold_auroc"] or ())))


def _ends(estimate: Estimate) -> list[float] | None:
    return None if math.isnan(estimate.low) else [estimate.low, estimate.high]


def _or_none(value: float) -> float | None:
    """The value, or None in place of NaN, which JSON lacks."""
    return None if math.isnan(value) else value


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value
