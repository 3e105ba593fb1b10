"""A small made-up report on survival, for the tests of the report and for looking at it."""

import dataclasses

import numpy as np
import pyarrow as pa

from milcore.evaluation.report.survival_contents import SurvivalComparison, SurvivalCount, SurvivalReport, SurvivalSlide
from milcore.evaluation.survival_curves import SURVIVAL_MODELS
from milcore.metrics.survival.outcome import Outcome
from milcore.metrics.survival.summary import RiskPredictions, survival_metrics
from tests.evaluation.report.example import example


def risk_predictions(patients: int, seed: int) -> RiskPredictions:
    """Risks that set a constant hazard, with a fifth of noise, at two sites."""
    random = np.random.default_rng(seed)
    risk = random.normal(size=patients)
    event_time, censoring = random.exponential(900 * np.exp(-risk)), random.exponential(1500, patients)
    outcome = Outcome.of(np.ceil(np.minimum(event_time, censoring)), event_time <= censoring)
    names = [f"case-{k:02d}" for k in range(patients)]
    sites = [("north", "south")[k % 2] for k in range(patients)]
    return RiskPredictions(outcome, risk + random.normal(0, 0.2, patients), names, sites)


def survival_example(slides: int) -> SurvivalReport:
    base, test, training = example(slides), risk_predictions(slides, 1), risk_predictions(200, 2)
    metrics = survival_metrics(test, training, seed=0)
    rows = zip(base.slides, test.outcome.time, test.outcome.event, test.risk, strict=True)
    views = [
        SurvivalSlide(
            dataclasses.replace(view, label=0, predicted_class=0, probabilities=(float(risk),), localisation=None),
            float(time),
            bool(event),
            float(risk),
            float(event) - 0.4,
        )
        for view, time, event, risk in rows
    ]
    return SurvivalReport(
        title=base.title,
        time="os_days",
        event="os_event",
        bag="patient",
        model=SURVIVAL_MODELS["survival_cox"],
        cut_points=(),
        counts=(count_of("train", training), count_of("test", test)),
        reference="the training patients",
        metrics=metrics,
        warnings=("<made-up> warning",),
        comparison=tuple(
            SurvivalComparison.of(name, "a note", metrics) for name in ("attention pooling", "embedding-mean pooling")
        ),
        history=history(),
        folds=0,
        sweep=None,
        slides=tuple(views),
        quarantined=base.quarantined,
        provenance=base.provenance,
        config=base.config,
    )


def count_of(split: str, predictions: RiskPredictions) -> SurvivalCount:
    outcome = predictions.outcome
    return SurvivalCount(split, len(outcome.time), outcome.events, float(np.median(outcome.time)))


def history() -> pa.Table:
    rows = [
        {"fold": 0, "epoch": epoch, "split": split, "metric": metric, "value": value / (1 + epoch)}
        for epoch in range(5)
        for split, metric, value in (("train", "loss", 3.0), ("val", "loss", 3.2), ("val", "harrell_c", 0.7))
    ]
    return pa.Table.from_pylist(rows)
