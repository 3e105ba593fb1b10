"""Threads of other libraries: at most the CPUs of this process, none spinning.

BLAS and Arrow start one for every CPU of a container's node. OpenMP's threads wait for each other at every step of a
computation; by default they spin, so that on busy cores each keeps the CPU from the thread that it waits for
(benchmarks/results/threads.md). torch is told apart: how many threads compute is in ``milcore.mil.threads``.
"""

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping

from milcore.runtime.limits import cpus

# read by OpenMP when it is loaded
WAITING_THREADS = {"OMP_WAIT_POLICY": "PASSIVE"}


@contextlib.contextmanager
def thread_limit() -> Iterator[None]:
    """Bound the threads of libraries, those loaded already and those of the context.

    Fewer that the environment asks for are left.
    """
    limit = cpus()
    if "numpy" in sys.modules:
        from threadpoolctl import ThreadpoolController  # noqa: PLC0415 - a pipeline is compiled without it

        for library in ThreadpoolController().select(user_api="blas").lib_controllers:
            library.set_num_threads(min(limit, library.num_threads))
    if (arrow := sys.modules.get("pyarrow")) is not None:
        arrow.set_cpu_count(min(limit, arrow.cpu_count()))
    with default_environment({**WAITING_THREADS, "OPENBLAS_NUM_THREADS": str(limit)}):
        yield


@contextlib.contextmanager
def default_environment(defaults: Mapping[str, str]) -> Iterator[None]:
    """Set those environment variables that are unset for the length of the context."""
    missing = {name: value for name, value in defaults.items() if name not in os.environ}
    os.environ.update(missing)
    try:
        yield
    finally:
        for name in missing:
            os.environ.pop(name, None)
