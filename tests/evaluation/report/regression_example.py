"""A small made-up report on regression, for the tests of the report and for looking at it."""

import dataclasses

import numpy as np
import pyarrow as pa

from milcore.evaluation.report.regression_contents import (
    RegressionComparison,
    RegressionCount,
    RegressionReport,
    RegressionSlide,
)
from milcore.metrics.regression.scale import target_scale
from milcore.metrics.regression.summary import ValuePredictions, regression_metrics
from tests.evaluation.report.example import example


def value_predictions(bags: int, seed: int) -> ValuePredictions:
    """Values of 50 and a standard deviation of 10, predicted nearer to the mean, of two sites."""
    random = np.random.default_rng(seed)
    true = random.normal(50, 10, bags)
    predicted = 50 + 0.7 * (true - 50) + random.normal(1, 4, bags)
    return ValuePredictions(
        true, predicted, [f"case-{k:02d}" for k in range(bags)], [("north", "south")[k % 2] for k in range(bags)]
    )


def regression_example(slides: int) -> RegressionReport:
    base, test, training = example(slides), value_predictions(slides, 1), value_predictions(200, 2)
    metrics = regression_metrics(test, seed=0)
    constant = test._replace(predicted=np.full(slides, training.true.mean()))
    rows = zip(base.slides, test.true.tolist(), test.predicted.tolist(), strict=True)
    views = [
        RegressionSlide(
            dataclasses.replace(view, label=0, predicted_class=0, probabilities=(predicted,), localisation=None),
            true,
            predicted,
        )
        for view, true, predicted in rows
    ]
    return RegressionReport(
        title=base.title,
        column="age_years",
        bag="slide",
        scale=target_scale(training.true),
        huber_delta=1.0,
        counts=(count_of("train", training), count_of("test", test)),
        test=test,
        metrics=metrics,
        warnings=("<made-up> warning",),
        comparison=(
            RegressionComparison.of("attention pooling", "a note", metrics),
            RegressionComparison.of("training mean", "a note", regression_metrics(constant, seed=0)),
        ),
        history=history(),
        folds=0,
        sweep=None,
        slides=tuple(views),
        quarantined=base.quarantined,
        provenance=base.provenance,
        config=base.config,
    )


def count_of(split: str, predictions: ValuePredictions) -> RegressionCount:
    values = predictions.true
    return RegressionCount(
        split, len(values), len(values), *map(float, (values.mean(), values.std(), values.min(), values.max()))
    )


def history() -> pa.Table:
    """R2 begins below 0."""
    rows = [
        {"fold": 0, "epoch": epoch, "split": split, "metric": metric, "value": value}
        for epoch, r2 in enumerate((-0.4, -0.1, 0.2, 0.4, 0.5))
        for split, metric, value in (("train", "loss", 0.4 / (1 + epoch)), ("val", "loss", 0.5), ("val", "r2", r2))
    ]
    return pa.Table.from_pylist(rows)
