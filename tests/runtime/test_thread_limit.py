"""Libraries compute on no more threads than there are CPUs, and on fewer where the environment says so."""

import os
import subprocess
import sys

import pyarrow as pa
import pytest
from threadpoolctl import ThreadpoolController

from milcore.runtime.thread_limit import thread_limit

SHOW = """
import os
import numpy, pyarrow
from threadpoolctl import ThreadpoolController
import milcore.runtime.thread_limit as threads
threads.cpus = lambda: 1
with threads.thread_limit():
    import torch
    blas = [library.num_threads for library in ThreadpoolController().select(user_api="blas").lib_controllers]
    print(max(blas), pyarrow.cpu_count(), os.environ["OMP_WAIT_POLICY"])
print("OMP_WAIT_POLICY" in os.environ)
"""


def test_libraries_take_the_cpus_of_a_quota() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "OPENBLAS_"))}
    shown = subprocess.run([sys.executable, "-c", SHOW], capture_output=True, text=True, check=True, env=environment)
    assert shown.stdout.split() == ["1", "1", "PASSIVE", "False"]


def test_what_the_environment_says_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    monkeypatch.setattr("milcore.runtime.thread_limit.cpus", lambda: 64)
    arrow, blas = pa.cpu_count(), blas_threads()
    with thread_limit():
        assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"
    assert (pa.cpu_count(), blas_threads()) == (arrow, blas)


def blas_threads() -> list[int]:
    return [library.num_threads for library in ThreadpoolController().select(user_api="blas").lib_controllers]
