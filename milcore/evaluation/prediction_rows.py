"""Table of predictions of new slides, by target: columns and summary."""

from collections.abc import Callable
from typing import Any, NamedTuple

from milcore.config import Target
from milcore.evaluation.scorer import Scorer
from milcore.evaluation.survival_curves import survival_columns
from milcore.metrics.calibration import calibrate
from milcore.mil.inference import BagPrediction, mean_constants


class PredictionRows(NamedTuple):
    """Row of a target in the table of predictions.

    Args:
        summary: members of ``predictions.json`` on the models.
        columns: of a slide, empty where it is quarantined.
    """

    summary: Callable[[Scorer], dict[str, Any]]
    columns: Callable[[Scorer, BagPrediction | None], dict[str, Any]]


def _class_summary(scorer: Scorer) -> dict[str, Any]:
    return {
        "classes": list(scorer.spec.classes),
        "threshold": scorer.rule.threshold.value if scorer.rule and scorer.rule.threshold else None,
        "temperature": scorer.rule.temperature.value if scorer.rule else None,
    }


def _class_columns(scorer: Scorer, prediction: BagPrediction | None) -> dict[str, Any]:
    """Class that is called, and probabilities of the positive class or of every one."""
    names = scorer.spec.classes
    predicted_class = None if prediction is None else scorer.predicted_class(prediction)
    row: dict[str, Any] = {"called": None if predicted_class is None else names[predicted_class]}
    columns = {"probability": 1} if len(names) == 2 else {f"probability_{name}": k for k, name in enumerate(names)}
    for column, label in columns.items():
        calibrated = "calibrated" + column.removeprefix("probability")
        row[column] = None if prediction is None else float(prediction.probability[label])
        row[calibrated] = None if prediction is None else _calibrated_probability(scorer, prediction, label)
    shown = 1 if len(names) == 2 or prediction is None else prediction.likeliest
    return row | {"spread": _std(scorer, prediction, shown)}


def _calibrated_probability(scorer: Scorer, prediction: BagPrediction, label: int) -> float | None:
    if scorer.rule is None:
        return None
    return float(calibrate(prediction.probability[None], scorer.rule.temperature.value)[0, label])


def _survival_summary(scorer: Scorer) -> dict[str, Any]:
    train = scorer.spec.train
    cut_points = {"cut_points": times} if (times := _cut_points(scorer)) else {}
    return {"target": train.target, "time": train.time, "event": train.event, **cut_points}


def _cut_points(scorer: Scorer) -> list[float]:
    """Times at which the models predict survival; empty where they do not."""
    times: list[float] = mean_constants(scorer.models).tolist()
    return times


def _survival_columns(scorer: Scorer, prediction: BagPrediction | None) -> dict[str, Any]:
    """Risk, and survival at the cut points of a model that has some."""
    columns = ("risk", *survival_columns(_cut_points(scorer)))
    values = [None] * len(columns) if prediction is None else prediction.probability.tolist()
    row = dict(zip(columns, values, strict=True))
    return {"risk": row.pop("risk"), "spread": _std(scorer, prediction, 0), **row}


def _value_summary(scorer: Scorer) -> dict[str, Any]:
    return {"target": scorer.spec.train.target, "target_column": scorer.spec.train.target_column}


def _value_columns(scorer: Scorer, prediction: BagPrediction | None) -> dict[str, Any]:
    """Predicted value, in the unit of its column."""
    value = None if prediction is None else float(prediction.probability[0])
    return {"predicted_value": value, "spread": _std(scorer, prediction, 0)}


def _std(scorer: Scorer, prediction: BagPrediction | None, column: int) -> float | None:
    """Standard deviation over the models of folds; None of one model."""
    return float(prediction.std[column]) if prediction is not None and scorer.spec.folds else None


PREDICTION_ROWS: dict[Target, PredictionRows] = {
    "classification": PredictionRows(_class_summary, _class_columns),
    "survival_cox": PredictionRows(_survival_summary, _survival_columns),
    "survival_hazard": PredictionRows(_survival_summary, _survival_columns),
    "regression": PredictionRows(_value_summary, _value_columns),
}
