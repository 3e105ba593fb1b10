"""Shapes and types in annotations, checked in the first calls of every test.

A loop calls the same functions again and again; checks of all its calls would take half of its time.
"""

from collections.abc import Callable
from typing import Any

import jaxtyping
from beartype import beartype

# of arguments and of results, together; thousandths of a second for ten
CHECKS_PER_TEST = 2_000

_left = CHECKS_PER_TEST


def begin_test() -> None:
    """Check again."""
    global _left  # noqa: PLW0603 - one count for the functions of all modules
    _left = CHECKS_PER_TEST
    jaxtyping.config.update("jaxtyping_disable", False)


def bounded(function: Callable[..., Any]) -> Callable[..., Any]:
    """Beartype's check of a function, until the test has made its checks."""
    check = beartype(function)

    def call(*arguments: Any, **keywords: Any) -> Any:
        global _left  # noqa: PLW0603 - see above
        _left -= 1
        if _left == 0:
            jaxtyping.config.update("jaxtyping_disable", True)
        return check(*arguments, **keywords)

    return call
