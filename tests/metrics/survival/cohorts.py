"""Cohorts of scikit-survival with the covariates as numbers, their times as they are and rounded to make ties."""

from typing import NamedTuple

import numpy as np
from sksurv.column import encode_categorical
from sksurv.datasets import load_gbsg2, load_whas500
from sksurv.util import Surv

from milcore.metrics.survival.outcome import Outcome

LOADERS = {"gbsg2": load_gbsg2, "whas500": load_whas500}
# days to which times are rounded up
STEPS = {"gbsg2": 120.0, "whas500": 90.0}
NAMES = ("gbsg2", "gbsg2 with ties", "whas500", "whas500 with ties")


class Cohort(NamedTuple):
    outcome: Outcome
    covariates: np.ndarray

    @property
    def surv(self) -> np.ndarray:
        return Surv.from_arrays(self.outcome.event, self.outcome.time)

    def part(self, mask: np.ndarray) -> "Cohort":
        return Cohort(self.outcome.of_patients(mask), self.covariates[mask])


def cohort(name: str) -> Cohort:
    key, _, ties = name.partition(" ")
    table, surv = LOADERS[key]()
    event, time = (surv[field].copy() for field in surv.dtype.names)
    if ties:
        time = np.ceil(time / STEPS[key]) * STEPS[key]
    numbers = encode_categorical(table).astype(float).to_numpy()
    return Cohort(Outcome.of(time, event), numbers)


def halves(name: str) -> tuple[Cohort, Cohort]:
    """Training and test patients, the test times within those of training."""
    whole = cohort(name)
    training = np.random.default_rng(4).random(len(whole.covariates)) < 0.6
    last = whole.outcome.time[training].max()
    return whole.part(training), whole.part(~training & (whole.outcome.time < last))
