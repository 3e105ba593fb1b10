"""Score of a bag, from a replica to the gateway, which imports no torch."""

from typing import Any, NamedTuple


class Score(NamedTuple):
    """Score of a bag.

    Args:
        columns: as in the table of ``milcore predict``; None where the run has no such value.
        instances: those of highest attention, the highest first.
        weights: their attention.
        batch: number of bags that passed through the models with it.
    """

    columns: dict[str, Any]
    instances: list[int]
    weights: list[float]
    batch: int
