"""A step that tries again itself: after what may pass, and not after bad input."""

from collections.abc import Callable

import pytest

from milcore.errors import ClusterError, DamageError, InputError, StorageError
from milcore.runtime import step_retry
from milcore.runtime.step_retry import OWN_RETRIES, with_own_retries


@pytest.fixture(autouse=True)
def _no_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_retry, "FIRST_WAIT_S", 0.0)
    monkeypatch.setenv(OWN_RETRIES, "2")


def action(*errors: Exception) -> tuple[Callable[[], int], list[Exception]]:
    """An action that fails by each of the errors in turn, and then returns 7; the errors that are left."""
    left = list(errors)

    def call() -> int:
        if left:
            raise left.pop(0)
        return 7

    return call, left


@pytest.mark.parametrize("error", [StorageError("reset"), ClusterError("away"), ConnectionError("reset"), OSError("x")])
def test_what_may_pass_is_tried_again(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    call, _ = action(error, error)
    assert with_own_retries(call) == 7
    assert capsys.readouterr().err.count("trying again in 0 s") == 2


@pytest.mark.parametrize("error", [InputError("bad"), DamageError("torn"), FileNotFoundError("none"), ValueError("x")])
def test_what_stays_the_same_is_not(error: Exception) -> None:
    call, left = action(error, StorageError("reset"))
    with pytest.raises(type(error)):
        with_own_retries(call)
    assert len(left) == 1


def test_the_last_error_ends_the_step() -> None:
    call, left = action(*(StorageError(f"reset {k}") for k in range(4)))
    with pytest.raises(StorageError, match="reset 2"):
        with_own_retries(call)
    assert len(left) == 1


def test_outside_a_scheduler_nothing_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(OWN_RETRIES)
    call, _ = action(StorageError("reset"))
    with pytest.raises(StorageError):
        with_own_retries(call)
