"""No item is lost when its process is killed."""

import os
import signal
from functools import partial
from pathlib import Path

import pytest

from milcore.runtime.processes import map_in_processes


def _square_or_die(item: int, marks: str) -> int:
    """Item 3 always kills its process, item 5 the first time only."""
    first = not Path(marks, str(item)).exists()
    Path(marks, str(item)).touch()
    if item == 3 or (item == 5 and first):
        os.kill(os.getpid(), signal.SIGKILL)
    if item < 0:
        raise ValueError(item)
    return item * item


@pytest.mark.parametrize(
    ("items", "expected"), [(range(5), [-3, 0, 1, 4, 16]), (range(4, 8), [16, 25, 36, 49])], ids=["always", "once"]
)
def test_every_item_has_a_result_though_a_process_is_killed(items: range, expected: list[int], tmp_path: Path) -> None:
    """Apart, since an item that dies on its own after it was in work beside another's death counts as dead twice."""
    work = partial(_square_or_die, marks=str(tmp_path))
    assert sorted(map_in_processes(work, items, 2, lambda item: -item)) == expected


def test_exceptions_of_the_function_are_raised_and_the_environment_is_restored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    with pytest.raises(ValueError, match="-1"):
        list(map_in_processes(partial(_square_or_die, marks=str(tmp_path)), [-1], 1, abs))
    assert os.environ["OMP_NUM_THREADS"] == "7"
    assert "MKL_NUM_THREADS" not in os.environ
