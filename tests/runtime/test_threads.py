"""Threads keep the order, hold no more in work than they may, and end what has begun."""

import threading
import time
from collections.abc import Iterator

import pytest

from milcore.runtime.threads import map_in_threads


def test_results_come_in_the_order_of_the_items() -> None:
    def late(k: int) -> int:
        time.sleep(0.02 if k % 3 == 0 else 0)
        return k * k

    assert list(map_in_threads(late, range(20), 4)) == [k * k for k in range(20)]


def test_items_are_taken_as_results_are() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for k in range(100):
            taken.append(k)
            yield k

    results = map_in_threads(lambda k: k, items(), 3)
    assert next(results) == 0
    assert len(taken) == 2 * 3 + 1


@pytest.mark.parametrize(("most", "together"), [(10.0, 2), (4.0, 1), (1.0, 1)])
def test_no_more_is_in_work_than_its_size_allows(most: float, together: int) -> None:
    lock, working, seen = threading.Lock(), 0, []

    def work(_: int) -> None:
        nonlocal working
        with lock:
            working += 1
            seen.append(working)
        time.sleep(0.01)
        with lock:
            working -= 1

    list(map_in_threads(work, range(12), 8, lambda _: 4.0, most))
    assert max(seen) == together


def test_the_first_failure_is_raised_and_what_has_begun_ends() -> None:
    ended: list[int] = []

    def work(k: int) -> int:
        if k == 1:
            raise ValueError("1")
        time.sleep(0.02)
        ended.append(k)
        return k

    results = map_in_threads(work, range(100), 2)
    assert next(results) == 0
    with pytest.raises(ValueError, match="1"):
        next(results)
    assert 2 <= len(ended) <= 5
