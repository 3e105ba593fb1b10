"""Weights and draws that even out classes of unequal size."""

from collections import Counter

import numpy as np
import pytest

from milcore.training.class_balance import balanced_sample, class_weights


def test_class_weights_are_inverse_frequencies_whose_mean_over_bags_is_one() -> None:
    """Six and two bags: 8 / (2 * 6) and 8 / (2 * 2)."""
    labels = np.array([0] * 6 + [1] * 2)
    weights = class_weights(labels, 2)
    assert weights.tolist() == pytest.approx([2 / 3, 2.0])
    assert weights[labels].mean() == pytest.approx(1.0)


def test_a_class_without_bags_has_no_weight() -> None:
    assert class_weights(np.array([0, 2]), 3).tolist() == pytest.approx([2 / 3, 0.0, 2 / 3])


def test_every_class_is_drawn_equally_often_and_a_small_one_evenly() -> None:
    """Seven of 0 and two of 1 in nine draws: 5 and 4; each of the two is drawn twice, none of the seven again."""
    labels = [0] * 7 + [1] * 2
    drawn = Counter(balanced_sample(list(range(9)), labels, seed=0, epoch=0))
    assert sum(count for index, count in drawn.items() if labels[index] == 0) == 5
    assert max(drawn[index] for index in range(7)) == 1
    assert drawn[7] == drawn[8] == 2


def test_another_epoch_draws_other_bags_and_the_same_one_the_same() -> None:
    labels = [0] * 40 + [1] * 4
    draws = [set(balanced_sample(list(range(44)), labels, seed=0, epoch=epoch)) for epoch in (0, 0, 1)]
    assert draws[0] == draws[1]
    assert draws[0] != draws[2]


def test_nothing_is_drawn_of_nothing() -> None:
    assert balanced_sample([], [], seed=0, epoch=0) == []
