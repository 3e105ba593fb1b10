"""A step that only launches a job is small: its imports and its memory, in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from milcore.config import SplitConfig, TrainConfig, TuneConfig
from milcore.training.sweep import TrialResult, prepare_sweep, publish
from tests.cluster.http_api import serving
from tests.cluster.jobs.kuberay import FakeKubeRay
from tests.cohorts import write_features, write_store

ROOT = Path(__file__).resolve().parents[2]
SUCCEEDED = {"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}
HEAVY = ("torch", "ray", "sklearn")
# a component as kfp's executor calls it; then the heavy modules that it imported, and its peak memory in MiB
PROGRAM = """
import importlib, json, re, sys
from pathlib import Path
import kfp.dsl.executor_main
from kfp import dsl
step, folder, arguments, heavy = {given!r}
artifacts = {{"model": dsl.Model(uri=folder + "/model")}} if step == "train" else {{}}
try:
    getattr(importlib.import_module("components." + step), step).python_func(**arguments, **artifacts)
except SystemExit:
    pass  # the fake says that the job has succeeded, and nothing has computed
peak = int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) // 1024
print(json.dumps([[name for name in heavy if name in sys.modules], peak]))
"""
CLUSTER = {"use_gpu": False, "ray_address": "rayjob", "cluster_profile": "", "workers": 2}
INGESTED = json.dumps({"ok": 20, "quarantined": 0, "patches": 80, "skipped": 20})
SWEEP = {
    "features": "mean_rgb", "poolings": "max", "learning_rate_min": 1e-4, "learning_rate_max": 1e-3, "trials": 1,
    "target": "classification", "time": "", "event": "", "target_column": "", "bag": "slide", "epochs": 3,
    "settings": "",
}  # fmt: skip


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A store with features, and a sweep of it that is finished in ``run/tune``."""
    folder = str(tmp_path_factory.mktemp("launch"))
    store = write_store(f"{folder}/store", slides=20)
    write_features(store)
    config = TuneConfig(trials=1, train=TrainConfig(features="mean_rgb", hidden=8, attention_hidden=4))
    spec = prepare_sweep(store.uri, f"{folder}/run/tune", config, SplitConfig())
    publish(f"{folder}/run/tune", spec, [TrialResult(0, "max", 1e-3, 3, 0.4, 0.9, "ok", None)])
    return folder


def kubeconfig(address: str) -> dict[str, Any]:
    context = {"cluster": "c", "user": "c", "namespace": "mil"}
    return {
        "apiVersion": "v1", "kind": "Config", "current-context": "c", "users": [{"name": "c", "user": {}}],
        "clusters": [{"name": "c", "cluster": {"server": address}}], "contexts": [{"name": "c", "context": context}],
    }  # fmt: skip


def footprint(step: str, folder: str, arguments: dict[str, object]) -> tuple[list[str], int]:
    """Heavy modules and peak memory (MiB) of a component whose RayJob succeeds."""
    fake = FakeKubeRay([SUCCEEDED])
    with serving(fake) as address:
        Path(folder, "kubeconfig").write_text(yaml.safe_dump(kubeconfig(address)))
        program = PROGRAM.format(given=(step, folder, arguments, HEAVY))
        surroundings = os.environ | {"KUBECONFIG": f"{folder}/kubeconfig"}
        command = [sys.executable, "-c", program]
        ended = subprocess.run(command, capture_output=True, text=True, check=False, env=surroundings, cwd=ROOT)
    assert len(fake.created) == 1, ended.stderr
    modules, peak_mib = json.loads(ended.stdout.splitlines()[-1])
    return modules, peak_mib


@pytest.mark.slow
@pytest.mark.parametrize(
    ("step", "arguments"),
    [
        ("encode", {"outcomes": [INGESTED], "encoder": "efficientnet_lite0", "settings": ""}),
        ("tune", {"run_uri": "new", **SWEEP}),
        ("train", {"run_uri": "run", "sweep_uri": "run/tune"}),
    ],
)
def test_a_step_that_only_launches_imports_neither_torch_nor_ray(
    step: str, arguments: dict[str, object], prepared: str
) -> None:
    """With them it took 490 MiB, without 230."""
    places = {name: f"{prepared}/{arguments[name]}" for name in ("run_uri", "sweep_uri") if name in arguments}
    modules, peak_mib = footprint(step, prepared, {"store_uri": f"{prepared}/store", **arguments, **places, **CLUSTER})
    assert modules == []
    assert peak_mib < 350
