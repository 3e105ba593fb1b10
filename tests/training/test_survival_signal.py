"""Survival learned from synthetic bags: attention finds what sets the hazard, and nothing where there is nothing."""

import numpy as np
import pytest

from milcore.cohort.synthetic.survival_bags import SurvivalBags, SurvivalPlan, survival_bags
from milcore.metrics.classification import Estimate
from milcore.metrics.survival.outcome import Outcome
from milcore.metrics.survival.summary import RiskPredictions, survival_metrics
from milcore.mil.bags.bags import Bags
from milcore.mil.inference import predict_bags
from milcore.training.fit import fit

SHARES = (0.5, 0.65)


def measure(cohort: SurvivalBags, pooling: str, epochs: int, seed: int) -> Estimate:
    """Harrell's C of a trained model on the last third of the patients."""
    count = len(cohort.risk)
    parts = np.searchsorted(np.array(SHARES) * count, np.arange(count), side="right")
    splits = [("train", "val", "test")[part] for part in parts]
    bags = Bags.from_arrays(
        list(cohort.features), splits=splits, times=cohort.time, events=cohort.event.astype(np.int64)
    )
    model = fit(
        bags,
        target="survival_cox",
        time="time",
        event="event",
        pooling=pooling,
        hidden=16,
        attention_hidden=8,
        epochs=epochs,
        batch_size="all",
        learning_rate=0.01,
        seed=seed,
    )
    predictions = predict_bags(model, bags)
    risk = np.array([predictions[index].probability[0] for index in range(count)])

    def of_split(part: int) -> RiskPredictions:
        members = np.flatnonzero(parts == part)
        outcome = Outcome.of(cohort.time, cohort.event).of_patients(members)
        return RiskPredictions(outcome, risk[members], [f"p{index}" for index in members])

    return survival_metrics(of_split(2), of_split(0), seed).overall["harrell_c"]


@pytest.mark.slow
def test_attention_beats_mean_pooling_by_more_than_two_standard_errors():
    cohorts = {seed: survival_bags(SurvivalPlan(patients=400, seed=seed)) for seed in range(3)}
    gaps = np.array(
        [
            measure(cohort, "gated_attention", 60, seed).value - measure(cohort, "mean", 60, seed).value
            for seed, cohort in cohorts.items()
        ]
    )
    assert gaps.mean() > 2 * gaps.std(ddof=1) / np.sqrt(len(gaps))
    assert gaps.mean() > 0.05


@pytest.mark.long
def test_intervals_cover_chance_in_cohorts_without_signal():
    """Of 200, 95 % intervals hold 0.5 in 90 to 99 %."""
    plans = [SurvivalPlan(patients=150, instances=(5, 10), log_hazard=0.0, seed=seed) for seed in range(200)]
    intervals = [measure(survival_bags(plan), "gated_attention", 5, plan.seed) for plan in plans]
    coverage = np.mean([each.low <= 0.5 <= each.high for each in intervals])
    assert 0.90 <= coverage <= 0.99, coverage
