"""The history of a run: one row per epoch, split and metric."""

from typing import NamedTuple

import pyarrow as pa


class HistoryRow(NamedTuple):
    """One metric of one split after an epoch."""

    epoch: int
    split: str
    metric: str
    value: float


def history_table(history: list[HistoryRow]) -> pa.Table:
    """Columns fold (0), epoch, split, metric, value."""
    return pa.table(
        {
            "fold": pa.array([0] * len(history), pa.int32()),
            "epoch": pa.array([row.epoch for row in history], pa.int32()),
            "split": pa.array([row.split for row in history], pa.string()),
            "metric": pa.array([row.metric for row in history], pa.string()),
            "value": pa.array([row.value for row in history], pa.float64()),
        }
    )


def with_fold(history: pa.Table, fold: int) -> pa.Table:
    """The history with its column ``fold`` set to one fold."""
    column = history.schema.get_field_index("fold")
    return history.set_column(column, "fold", pa.array([fold] * len(history), pa.int32()))
