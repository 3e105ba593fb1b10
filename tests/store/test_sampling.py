"""Samples hang on slide and seed alone, and patches come back in the order asked for."""

from pathlib import Path

import numpy as np
import pytest

from milcore.store.sampling import read_patches, sample_both_classes, sample_runs
from tests.cohorts import write_store


@pytest.mark.parametrize(("count", "expected"), [(1, 1), (64, 64), (65, 64), (1000, 64)])
def test_a_sample_is_at_most_64_different_patches(count: int, expected: int) -> None:
    indices = sample_runs(count, "a", 0)
    assert len(set(indices)) == len(indices) == expected
    assert max(indices) < count


def test_a_sample_comes_in_runs_of_eight_and_changes_with_slide_and_seed() -> None:
    indices = np.array(sample_runs(1000, "a", 0)).reshape(8, 8)
    np.testing.assert_array_equal(indices - indices[:, :1], np.tile(np.arange(8), (8, 1)))
    assert sample_runs(1000, "a", 0) == sample_runs(1000, "a", 0)
    assert sample_runs(1000, "a", 0) != sample_runs(1000, "b", 0)
    assert sample_runs(1000, "a", 0) != sample_runs(1000, "a", 1)


def test_both_classes_are_drawn_and_patches_in_doubt_are_not() -> None:
    labels = np.array([1] * 5 + [-1] * 50 + [0] * 100)
    indices = sample_both_classes(labels, "a", 0)
    assert indices[:5] == [0, 1, 2, 3, 4]
    assert len(indices) == 5 + 32
    assert (labels[indices] >= 0).all()


def test_patches_come_in_the_order_asked_for(tmp_path: Path) -> None:
    slide = write_store(str(tmp_path), slides=2, patches=40).slide("s01")
    everything = slide.patches(0, 40)
    asked = [39, 2, 3, 20, 0, 2]
    np.testing.assert_array_equal(read_patches(slide, asked), everything[asked])
