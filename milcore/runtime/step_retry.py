"""Retries of a pipeline's steps: by the scheduler, or in the step's own process.

The scheduler tries a step again whatever it failed for. One that checks input would let its user wait minutes for a
line that stays the same: it tries again itself, after errors that may pass.
"""

import os
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

RETRIES, FIRST_WAIT_S, WAIT_FACTOR, LONGEST_WAIT_S = 2, 60.0, 2.0, 600.0
# variable with the retries that the scheduler makes of a step
SCHEDULER_RETRIES = "MILCORE_RETRIES"
# variable with the retries that a step makes in its own process; outside a scheduler there are none
OWN_RETRIES = "MILCORE_OWN_RETRIES"


def with_own_retries(action: Callable[[], T]) -> T:
    """Result of an action, tried again where storage or a cluster failed it.

    Bad input and faults of the code are not.
    """
    from milcore.runtime.command import error_line  # noqa: PLC0415 - compiling takes this file without what it needs
    from milcore.runtime.progress import log_line  # noqa: PLC0415 - nor what progress needs

    for attempt in range(int(os.environ.get(OWN_RETRIES) or 0)):
        try:
            return action()
        except Exception as error:
            of_user = error_line(error)
            if of_user is None or of_user[1] != 1:
                raise
            wait_s = min(FIRST_WAIT_S * WAIT_FACTOR**attempt, LONGEST_WAIT_S)
            log_line(f"{of_user[0]}; trying again in {wait_s:g} s")
            time.sleep(wait_s)
    return action()
