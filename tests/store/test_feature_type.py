"""The type of features against a slow formula, and its independence of blocks."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from milcore.store import feature_type as module
from milcore.store.feature_type import feature_type


def _slow(features: np.ndarray) -> str:
    """Column by column, in float64, of the rows that are finite."""
    for column in features[np.isfinite(features).all(axis=1)].T.astype(np.float64):
        with np.errstate(over="ignore"):
            change = np.abs(column.astype(np.float16).astype(np.float64) - column)
        if (change > column.std() / 256).any():
            return "float32"
    return "float16"


@given(
    seed=st.integers(0, 10**6), rows=st.integers(1, 40), offset=st.sampled_from([0.0, 1.0, 10.0, 100.0]),
    scale=st.sampled_from([1e-3, 1.0, 1e3, 1e5]), kind=st.sampled_from([np.float32, np.float64, np.int64]),
)  # fmt: skip
def test_it_is_that_of_the_slow_formula(seed: int, rows: int, offset: float, scale: float, kind: type) -> None:
    values = (offset + scale * np.random.default_rng(seed).normal(size=(rows, 3))).astype(kind)
    assert feature_type(values) == _slow(values)


@pytest.mark.parametrize("values", [7, 50, 1 << 20])
def test_it_does_not_depend_on_the_length_of_blocks(monkeypatch: pytest.MonkeyPatch, values: int) -> None:
    """A column whose spread lies between blocks, not within: 30 rows at 0 and 30 at 1000.1."""
    monkeypatch.setattr(module, "_BLOCK_VALUES", values)
    features = np.repeat(np.array([0.0, 1000.1], np.float32), 30)[:, None]
    assert feature_type(features) == "float16"
    assert feature_type(features[30:]) == "float32"


def test_rows_that_are_no_numbers_do_not_count() -> None:
    features = np.array([[0.5, 1.0], [np.nan, 1000.3], [1.0, 2.0], [np.inf, 1e6]], np.float32)
    assert feature_type(features) == "float16"
    assert feature_type(features[[1, 3]]) == "float16"
