"""Annotations of shapes are checked in the first calls of every test, and in the next test again."""

import numpy as np
import pytest
from jaxtyping import TypeCheckError

from milcore.mil.bags.segments import ragged
from tests import type_checks

COUNTS, NOT_INTEGERS = np.array([1, 0]), np.array([True, False])


def test_checks_end_with_their_number_and_begin_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type_checks, "CHECKS_PER_TEST", 3)  # of the first call below, and two of each other
    for _ in range(2):
        type_checks.begin_test()
        with pytest.raises(TypeCheckError, match="ragged"):
            ragged(NOT_INTEGERS)
        ragged(COUNTS)
        group, _ = ragged(NOT_INTEGERS)
        assert group.tolist() == [0]
