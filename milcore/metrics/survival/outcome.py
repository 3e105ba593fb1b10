"""Follow-up of patients until an event or censoring, and counts by time.

Axis words: patient, time (unique times, ascending), resample.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from milcore.errors import InputError
from milcore.metrics.resamples import row_blocks


class Outcome(NamedTuple):
    """Time of each patient to the event or to censoring.

    Args:
        time: from the start of follow-up, in one unit for all patients, 0 or more.
        event: True where the event came at ``time``, False where follow-up ended then (censoring).
    """

    time: Float[np.ndarray, " patient"]
    event: Bool[np.ndarray, " patient"]

    @classmethod
    def of(cls, time: np.ndarray, event: np.ndarray) -> "Outcome":
        """Outcome of checked columns.

        Args:
            time: finite, 0 or more.
            event: 0 and 1, or booleans.

        Raises:
            InputError: columns of unequal length, a time that is negative or not finite, an event that is not 0 or 1.
        """
        values, happened = np.asarray(time, np.float64), np.asarray(event)
        if values.shape != happened.shape:
            raise InputError(
                f"time and event: expected as many of each, got {len(values)} and {len(happened)}; "
                "give every patient both"
            )
        faulty = values[~(np.isfinite(values) & (values >= 0))]
        if len(faulty):
            raise InputError(
                f"time: expected finite times, got {faulty[0]:g}; allowed: 0 or more; correct that patient"
            )
        if not np.isin(happened, (0, 1)).all():
            got = happened[~np.isin(happened, (0, 1))][0]
            raise InputError(
                f"event: expected an event or censoring, got {got}; allowed: 0 and 1; correct that patient"
            )
        return cls(values, happened.astype(bool))

    def of_patients(self, patients: np.ndarray) -> "Outcome":
        """Outcome of some of the patients, by mask or index."""
        return Outcome(self.time[patients], self.event[patients])

    @property
    def events(self) -> int:
        """Number of patients with the event."""
        return int(self.event.sum())


class TimeCounts(NamedTuple):
    """Weights of patients by unique time, in every resample.

    Args:
        time: unique times of events and censoring, ascending.
        at_risk: patients whose time is this one or later.
        events: patients with the event at this time.
        censored: patients whose follow-up ended at this time without it.
    """

    time: Float[np.ndarray, " time"]
    at_risk: Float[np.ndarray, "resample time"]
    events: Float[np.ndarray, "resample time"]
    censored: Float[np.ndarray, "resample time"]

    @classmethod
    def of(cls, outcome: Outcome, weights: Float[np.ndarray, "resample patient"] | None = None) -> "TimeCounts":
        """Counts by one sort for all resamples; without weights, of all patients."""
        rows = np.ones((1, len(outcome.time))) if weights is None else weights
        order = np.argsort(outcome.time, kind="stable")
        time, starts = np.unique(outcome.time[order], return_index=True)
        ordered = rows[:, order]
        total = np.add.reduceat(ordered, starts, axis=1)
        events = np.add.reduceat(ordered * outcome.event[order], starts, axis=1)
        return cls(time, total[:, ::-1].cumsum(axis=1)[:, ::-1], events, total - events)


def survival_at(
    outcome: Outcome, times: Float[np.ndarray, " time"], weights: Float[np.ndarray, "resample patient"]
) -> Float[np.ndarray, "resample time"]:
    """Kaplan-Meier survival at some times in every resample of the patients."""
    blocks = [_survival_at(outcome, times, weights[rows]) for rows in row_blocks(weights)]
    return np.concatenate(blocks)


def _survival_at(outcome: Outcome, times: np.ndarray, weights: np.ndarray) -> np.ndarray:
    counts = TimeCounts.of(outcome, weights)
    return step_values(counts.time, product_limit(counts.events, counts.at_risk), times, before=1.0)


def product_limit(
    events: Float[np.ndarray, "resample time"], at_risk: Float[np.ndarray, "resample time"]
) -> Float[np.ndarray, "resample time"]:
    """``prod_(u <= t) (1 - d(u) / n(u))`` over times with patients at risk."""
    share = np.divide(events, at_risk, out=np.zeros_like(events), where=at_risk > 0)
    survival: np.ndarray = np.cumprod(1.0 - share, axis=1)
    return survival


def step_values(
    time: Float[np.ndarray, " time"], values: Float[np.ndarray, "*row time"], at: np.ndarray, before: float
) -> Float[np.ndarray, "*row at"]:
    """Values of step functions at any times.

    Args:
        time: ascending; a value holds from its time on.
        values: of each function in a row, or of one.
        at: times that values are asked for.
        before: the value before the first time.
    """
    return np.insert(values, 0, before, axis=-1)[..., np.searchsorted(time, at, side="right")]


def check_scores(outcome: Outcome, scores: np.ndarray, name: str = "risk") -> None:
    """Refuse scores that are not one finite row for each patient.

    Raises:
        InputError: there are fewer or more, or one is not finite.
    """
    if len(scores) != len(outcome.time):
        raise InputError(
            f"{name}: expected one of each of {len(outcome.time)} patients, got {len(scores)}; "
            "give those of the same patients"
        )
    if not np.isfinite(scores).all():
        bad = scores[~np.isfinite(scores)][0]
        raise InputError(f"{name}: expected finite numbers, got {bad}; allowed: any finite number; look at the model")
