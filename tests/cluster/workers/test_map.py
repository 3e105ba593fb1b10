"""The fan-out hands back every result, takes no more than it can work on, and says why a function failed."""

import functools
import os
from collections.abc import Iterator

import pytest

from milcore.cluster.workers.map import map_on_ray
from milcore.config import LaunchConfig
from milcore.errors import ClusterError, StoreError

TWO = LaunchConfig(workers=2)


def square(offset: int, number: int) -> int:
    return number * number + offset


def refuse(number: int) -> int:
    raise StoreError(f"slide {number} is incomplete")


def break_down(number: int) -> int:
    return number // 0


def die(_: int) -> int:
    os._exit(1)


def test_every_result_comes_back(local_ray: None) -> None:
    assert sorted(map_on_ray(functools.partial(square, 1), range(5), launch=TWO)) == [1, 2, 5, 10, 17]


def test_no_items_give_no_results(local_ray: None) -> None:
    assert list(map_on_ray(functools.partial(square, 1), [], launch=TWO)) == []


def test_no_more_items_are_taken_than_workers_can_work_on(local_ray: None) -> None:
    taken = []

    def items() -> Iterator[int]:
        for number in range(10):
            taken.append(number)
            yield number

    results = map_on_ray(functools.partial(square, 0), items(), launch=TWO)
    next(results)
    assert taken == [0, 1, 2]
    assert len(list(results)) == 9


def test_an_error_raised_on_purpose_arrives_as_itself(local_ray: None) -> None:
    with pytest.raises(StoreError, match=r"^slide 3 is incomplete$"):
        list(map_on_ray(refuse, [3], launch=TWO))


def test_any_other_error_is_one_line_about_the_worker(local_ray: None) -> None:
    with pytest.raises(ClusterError, match=r"a Ray worker failed: ZeroDivisionError\("):
        list(map_on_ray(break_down, [3], launch=TWO))


def test_a_worker_that_dies_each_time_is_reported(local_ray: None) -> None:
    with pytest.raises(ClusterError, match="a Ray worker was lost"):
        list(map_on_ray(die, [3], launch=TWO))


def die_at_two(number: int) -> int:
    return die(number) if number == 2 else number


def test_an_item_that_kills_its_workers_can_have_a_result_of_its_own(local_ray: None) -> None:
    assert sorted(map_on_ray(die_at_two, range(5), lambda number: -number, launch=TWO)) == [-2, 0, 1, 3, 4]
