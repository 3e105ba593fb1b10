"""Training and a sweep in a notebook, run by a real kernel: lines of progress and nothing else are saved."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from milcore.config import SplitConfig, TrainConfig, TuneConfig
from milcore.store.store import PatchStore
from milcore.training.sweep import prepare_sweep
from tests.cohorts import write_features, write_store

pytestmark = [pytest.mark.long, pytest.mark.cluster]

# in a process of its own: the client's libraries warn of themselves
EXECUTE = """
import json, sys, nbclient, nbformat
cells = [nbformat.v4.new_code_cell(text) for text in sys.argv[1:]]
notebook = nbformat.v4.new_notebook(cells=cells)
nbclient.NotebookClient(notebook, timeout=300).execute()
print(json.dumps([cell.outputs for cell in cells]))
"""
FIT = """
import numpy as np
import milcore as mc
random = np.random.default_rng(0)
bags = mc.Bags.from_arrays([random.normal(k % 2, 1, (9, 8)) for k in range(16)], [k % 2 for k in range(16)])
model = mc.fit(bags, epochs=3, hidden=8)
"""
TUNE = """
from milcore.cluster.launch import tune_with
from milcore.config import LaunchConfig
print("a line of the cell itself")
best = tune_with({out!r}, LaunchConfig(workers=1))
"""


def executed(*cells: str) -> list[list[dict[str, Any]]]:
    """Outputs of each cell, as a saved notebook has them."""
    ended = subprocess.run([sys.executable, "-c", EXECUTE, *cells], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    outputs: list[list[dict[str, Any]]] = json.loads(ended.stdout)
    return outputs


def test_training_and_a_sweep_leave_their_lines_of_progress_and_no_others(tmp_path: Path) -> None:
    store, out = str(tmp_path / "store"), str(tmp_path / "out")
    write_features(write_store(store))
    PatchStore(store).rebuild_catalogue()
    train = TrainConfig(features="mean_rgb", hidden=8, epochs=2, batch_size=4)
    prepare_sweep(store, out, TuneConfig(poolings=("max", "mean"), trials=2, train=train), SplitConfig())
    fit, sweep = executed(FIT, TUNE.format(out=out))
    assert {output["output_type"] for output in (*fit, *sweep)} == {"stream"}
    lines = "".join(output["text"] for output in fit).splitlines()
    assert [re.match(r"epoch \d/3: train_loss ", line) is not None for line in lines] == [True, True]
    assert sweep[0]["text"] == "a line of the cell itself\n"
    lines = "".join(output["text"] for output in sweep[1:]).splitlines()
    expected = r"Ray CPUs: \d+; object store: \d+ MB$|\d/2 trials: |trial \d is first"
    assert [re.match(expected, line) is not None for line in lines] == [True] * 4
