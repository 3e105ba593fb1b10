"""Metrics of the bags that the folds of a run left out: ``out_of_fold.json``."""

import math
from typing import Any, NamedTuple

from milcore.config import Target
from milcore.metrics.classification import Estimate
from milcore.training.selection import RANK_METRICS


class OutOfFold(NamedTuple):
    """Pooled metric of the bags that folds left out, and each fold's.

    AUROC, Harrell's C of survival, or R2 of regression. AUROC is undefined where they are of one class, or more than
    two. Models of different folds are only roughly on one scale, so the pooled metric may lie below the mean of the
    folds'.

    Args:
        folds: number of models.
        slides: number of bags, of survival that of patients; each predicted by a model that saw none of its patient.
        metric: value and interval: AUROC with Newcombe's; others, and AUROC of earlier versions, as
            ``resampled``.
        resampled: the same with the interval from resampled patients.
        fold_metric: of each fold; NaN where undefined, none with more than two classes.
        target: of the models.
    """

    folds: int
    slides: int
    metric: Estimate
    resampled: Estimate
    fold_metric: tuple[float, ...]
    target: Target = "classification"

    @property
    def line(self) -> str:
        """Models, pooled metric and interval in one line."""
        rank = RANK_METRICS[self.target]
        return f"{self.folds} models; pooled {rank.title} of the {rank.bags} left out {self.metric}"

    def to_json(self) -> dict[str, object]:
        """The content of the file."""
        name = RANK_METRICS[self.target].name
        newcombe = {"auroc_newcombe": _ends(self.metric)} if name == "auroc" else {}
        return {
            "folds": self.folds,
            "slides": self.slides,
            name: _or_none(self.metric.value),
            "interval": _ends(self.resampled),
            **newcombe,
            f"fold_{name}": [_or_none(value) for value in self.fold_metric] or None,
        }

    @classmethod
    def from_json(cls, values: dict[str, Any], target: Target = "classification") -> "OutOfFold":
        """The metrics of a file's content.

        Args:
            values: of the file.
            target: of the run.
        """
        name = RANK_METRICS[target].name
        value = _or_nan(values[name])
        resampled = Estimate(value, *(values["interval"] or ()))
        newcombe = values.get("auroc_newcombe")
        metric = resampled if newcombe is None else Estimate(value, *newcombe)
        of_folds = tuple(map(_or_nan, values[f"fold_{name}"] or ()))
        return cls(values["folds"], values["slides"], metric, resampled, of_folds, target)


def _ends(estimate: Estimate) -> list[float] | None:
    return None if math.isnan(estimate.low) else [estimate.low, estimate.high]


def _or_none(value: float) -> float | None:
    """The value, or None in place of NaN, which JSON lacks."""
    return None if math.isnan(value) else value


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value
