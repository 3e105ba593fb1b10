"""Figures of a row from its folds, beside those of the paper.

Accuracy, precision, recall, F1 and AUROC are means over folds with the standard error ``sd of fold scores /
sqrt(folds)``; ``auroc_pooled`` is the mean over repeats of the AUROC of all bags of a repeat together.
"""

import math
import platform
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from sklearn.metrics import f1_score, precision_score, recall_score

from benchmarks.ilse2018.protocol import FoldResult
from milcore import __version__
from milcore.metrics.auroc import auroc

# accuracy and AUROC with their standard errors where known. Recalled from Ilse et al. 2018 unless marked; check against
# the paper before quoting. PMC: an independent re-run, PMC10072016, table 6, read.
PAPER: dict[str, list[tuple[str, str, str]]] = {
    "musk1": [
        ("attention", ".892 ± .040", ""),
        ("gated attention", ".900 ± .050", ""),
        ("mi-Net", ".889", ""),
        ("MI-Net", ".887", ""),
    ],
    "elephant": [
        ("attention", ".868 ± .022", ""),
        ("gated attention", ".857 ± .027", ""),
        ("mi-Net", ".858", ""),
        ("MI-Net", ".862", ""),
    ],
    "colon_bags": [
        ("attention", ".904 ± .011", ".968 ± .009"),
        ("gated attention", ".898", ".968"),
        ("attention, PMC re-run", ".900", ".959"),
        ("gated attention, PMC re-run", ".890", ".955"),
        ("embedding + mean", ".860", ".940"),
        ("embedding + max", ".824", ".918"),
        ("instance + max", ".842", ".914"),
        ("instance + mean", ".772", ".866"),
    ],
    "mnist-bags, mean length 10, 50 training bags": [
        ("attention", "", ".768"),
        ("instance + max", "", ".553"),
        ("embedding + mean", "", ".695"),
    ],
    "mnist-bags, mean length 10, 100 training bags": [
        ("attention", "", ".948"),
        ("instance + max", "", ".745"),
        ("embedding + mean", "", ".841"),
    ],
    "mnist-bags, mean length 10, 200 training bags": [
        ("attention", "", ".970"),
        ("instance + max", "", ".979"),
        ("embedding + mean", "", ".953"),
    ],
}


COLUMNS = (
    "pooling, level",
    "accuracy",
    "precision",
    "recall",
    "F1",
    "AUROC",
    "pooled AUROC",
    "localisation AUROC",
    "validation accuracy - test accuracy",
    "epochs",
    "seconds",
)


def summary(folds: Sequence[FoldResult]) -> dict[str, Any]:
    """The figures of a row; None where a figure is not defined."""
    labels = [np.array(fold.labels) for fold in folds]
    called = [np.array(fold.probability) >= fold.threshold for fold in folds]
    figures: dict[str, Any] = {}
    for name, scores in {
        "accuracy": [float(np.mean(y == c)) for y, c in zip(labels, called, strict=True)],
        "precision": _scores(precision_score, labels, called),
        "recall": _scores(recall_score, labels, called),
        "f1": _scores(f1_score, labels, called),
        "auroc": [auroc(y, np.array(fold.probability)) for y, fold in zip(labels, folds, strict=True)],
        "localisation_auroc": [area for fold in folds for area in fold.localisation.values()],
    }.items():
        figures[name], figures[f"{name}_se"] = mean_and_error(scores)
    figures["auroc_pooled"] = _pooled(folds, [fold.probability for fold in folds])
    figures["colour_auroc"] = _pooled(folds, [fold.colour for fold in folds])
    with_controls = [fold for fold in folds if fold.shuffled is not None]
    figures["shuffled_auroc"] = _pooled(with_controls, [fold.shuffled or [] for fold in with_controls])
    validations = [fold.validation for fold in folds if fold.validation is not None]
    figures["validation_accuracy"] = float(np.mean(validations)) if validations else None
    figures["epochs"] = float(np.mean([epochs for fold in folds for epochs in fold.epochs]))
    figures["folds"] = len(folds)
    return figures


def mean_and_error(scores: Sequence[float]) -> tuple[float | None, float | None]:
    """Mean of the defined scores and its standard error; None if too few."""
    defined = [score for score in scores if not math.isnan(score)]
    if not defined:
        return None, None
    error = float(np.std(defined, ddof=1) / math.sqrt(len(defined))) if len(defined) > 1 else None
    return float(np.mean(defined)), error


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """A table per data set: the rows measured, then the paper's."""
    return "\n".join(_table(name, [row for row in rows if row["dataset"] == name]) for name in _names(rows))


def versions() -> dict[str, str]:
    """Versions of this project, torch and Python."""
    return {"milcore": __version__, "torch": torch.__version__, "python": platform.python_version()}


def _names(rows: Sequence[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(row["dataset"] for row in rows))


def _table(dataset: str, rows: Sequence[dict[str, Any]]) -> str:
    first = rows[0]
    caption = (
        f"{first['folds']} test folds. Controls, pooled AUROC: logistic regression on mean and standard deviation of "
        f"features or colours {_figure(first['colour_auroc'])}; shuffled labels {_figure(first['shuffled_auroc'])}."
    )
    lines = [f"## {dataset}", "", caption, "", f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    lines += [_line(row) for row in rows]
    lines += [
        f"| *Ilse et al. 2018: {name}* | {_italic(accuracy)} | | | | {_italic(area)} | | | | | |"
        for name, accuracy, area in PAPER.get(dataset, [])
    ]
    return "\n".join([*lines, ""])


def _italic(text: str) -> str:
    return f"*{text}*" if text else ""


def _line(row: dict[str, Any]) -> str:
    gap = None if row["validation_accuracy"] is None else row["validation_accuracy"] - row["accuracy"]
    cells = [
        f"{row['pooling']}, {row['level']}{row['note']}",
        _with_error(row, "accuracy"),
        _figure(row["precision"]),
        _figure(row["recall"]),
        _figure(row["f1"]),
        _with_error(row, "auroc"),
        _figure(row["auroc_pooled"]),
        _with_error(row, "localisation_auroc"),
        "" if gap is None else f"{gap:+.3f}",
        f"{row['epochs']:.0f}",
        f"{row['seconds']:.0f}",
    ]
    return f"| {' | '.join(cells)} |"


def _with_error(row: dict[str, Any], name: str) -> str:
    error = row[f"{name}_se"]
    return _figure(row[name]) + ("" if error is None else f" ± {_figure(error)}")


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _scores(score: Callable[..., float], labels: Sequence[np.ndarray], called: Sequence[np.ndarray]) -> list[float]:
    return [float(score(y, c, zero_division=0.0)) for y, c in zip(labels, called, strict=True)]


def _pooled(folds: Sequence[FoldResult], scores: Sequence[Sequence[float]]) -> float | None:
    areas = []
    for repeat in sorted({fold.repeat for fold in folds}):
        mine = [place for place, fold in enumerate(folds) if fold.repeat == repeat]
        labels = np.concatenate([folds[place].labels for place in mine])
        areas.append(auroc(labels, np.concatenate([scores[place] for place in mine])))
    return mean_and_error(areas)[0]
