"""What waits while a batch is computed is the next one."""

import asyncio
import threading
from collections.abc import Sequence

import pytest

from milcore.serving.batch_queue import BatchQueue


class Doubling:
    """A function that waits for a word before its first batch, and keeps its batches."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.begun, self.go_on = threading.Event(), threading.Event()

    def __call__(self, items: Sequence[int]) -> list[int]:
        self.batches.append(list(items))
        self.begun.set()
        assert self.go_on.wait(30)
        if 0 in items:
            raise ZeroDivisionError
        return [2 * item for item in items]


def results_of(first: int, rest: Sequence[int], limit: int, cancelled: int = 0) -> tuple[list[list[int]], list[object]]:
    """Batches, and results or errors, where the rest comes while the first is computed; an item's size is itself."""
    function = Doubling()

    async def run() -> list[object]:
        queue = BatchQueue(function, abs, limit)
        tasks = [asyncio.create_task(queue.result(first))]
        await asyncio.to_thread(function.begun.wait, 30)
        tasks += [asyncio.create_task(queue.result(item)) for item in rest]
        await asyncio.sleep(0)
        for task in tasks[1 : 1 + cancelled]:
            task.cancel()
        function.go_on.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    return function.batches, asyncio.run(run())


@pytest.mark.parametrize(
    ("rest", "limit", "batches"),
    [
        ([1, 1, 1], 10, [[1, 1, 1]]),
        ([3, 3, 4, 5], 10, [[3, 3, 4], [5]]),
        ([20, 1, 2], 10, [[20], [1, 2]]),
        ([1, 20, 2], 10, [[1], [20], [2]]),
        ([2, 3], 1, [[2], [3]]),
        ([], 10, []),
    ],
)
def test_a_batch_takes_what_waits_up_to_its_limit(rest: list[int], limit: int, batches: list[list[int]]) -> None:
    found, results = results_of(7, rest, limit)
    assert found == [[7], *batches]
    assert results == [2 * item for item in (7, *rest)]


def test_an_item_that_is_cancelled_while_it_waits_is_not_computed() -> None:
    batches, results = results_of(7, [1, 2, 3], 10, cancelled=2)
    assert batches == [[7], [3]]
    assert [type(result) for result in results] == [int, asyncio.CancelledError, asyncio.CancelledError, int]


def test_an_error_is_that_of_its_batch_alone() -> None:
    batches, results = results_of(0, [1, 2], 10)
    assert batches == [[0], [1, 2]]
    assert isinstance(results[0], ZeroDivisionError)
    assert results[1:] == [2, 4]
