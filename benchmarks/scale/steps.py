"""One step in a process of its own: ``python -m benchmarks.scale.steps STEP FOLDER CASE_SLIDES CASE_INSTANCES OUT``.

It prints a line of JSON: seconds without the imports, and the highest resident memory. The process imports what the
step needs before its clock starts.
"""

import io
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import fsspec
import h5py
import ray
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

import milcore as mc
from benchmarks.memory import resident_mb
from benchmarks.scale.cases import Case
from milcore import api
from milcore.cli.info import describe
from milcore.runtime import storage
from milcore.store.store import PatchStore
from milcore.training.run_folder import Run

FEATURES = "imported"
EPOCHS, BATCH = 2, 8
PARTITIONS = 100
# seconds after which a peer's reading ends; what is left is reckoned from what was read
PEER_SECONDS = 30.0
FIRST_STEP = "MILCORE_BENCHMARK_FIRST_STEP"
Row = dict[str, float]


class Place:
    """Where a case lies: a folder with ``h5``, ``pt``, ``labels.csv``, ``manifest.csv`` and ``store``."""

    def __init__(self, uri: str, case: Case, out: str) -> None:
        self.uri, self.case, self.store, self.out = uri, case, f"{uri}/store", out

    def new(self, name: str) -> str:
        """A folder of that name and the time: one that was removed is listed by some servers for a while."""
        return f"{self.out}/{name}-{time.time_ns()}"

    def newest(self, name: str) -> str:
        """The last folder that ``new`` named so."""
        return f"{self.out}/{max(each for each in storage.names(self.out) if each.startswith(f'{name}-'))}"


def note_first_step() -> None:
    """Write the time of this process's first optimizer step to the file that the environment names."""
    path = Path(os.environ[FIRST_STEP])

    def note(*_: object) -> None:
        if not path.exists():
            path.write_text(str(time.time()))

    register_optimizer_step_post_hook(note)


def import_store(place: Place) -> Row:
    """``milcore import`` of the h5 files into a new store, or one that is begun."""
    mc.import_cohort(f"{place.uri}/h5", place.store, format="stamp", labels=f"{place.uri}/labels.csv", name=FEATURES)
    return {}


def open_store(place: Place) -> Row:
    """Ids of the slides that can be read."""
    return {"slides": len(PatchStore(place.store).slide_ids())}


def info(place: Place) -> Row:
    """``milcore info``."""
    return {"slides": describe(place.store)["features"][FEATURES]}


def plan(place: Place) -> Row:
    """The pipeline's planning step over a manifest of files in this storage."""
    planned = api.plan_ingestion(f"{place.uri}/manifest.csv", place.new("planned"), None, PARTITIONS)
    return {"partitions": len(planned)}


def train(place: Place) -> Row:
    """``milcore train --workers 0`` for two epochs."""
    return _train(place, 0)


def train_on_ray(place: Place) -> Row:
    """``milcore train --workers 1`` for two epochs, after Ray is up."""
    environment = {FIRST_STEP: os.environ[FIRST_STEP], "PYTHONPATH": str(Path(__file__).parents[2])}
    hook = "benchmarks.scale.steps.note_first_step"
    runtime = {"env_vars": environment, "worker_process_setup_hook": hook}
    ray.init("local", num_cpus=2, runtime_env=runtime, log_to_driver=False)
    return _train(place, 1)


def _train(place: Place, workers: int) -> Row:
    note_first_step()
    begun, run = time.time(), place.new(f"run{workers}")
    settings = {"features": FEATURES, "epochs": EPOCHS, "batch_size": BATCH, "checkpoint_every": EPOCHS}
    mc.train(place.store, run, workers=workers, **settings)
    ended = time.time()
    rows = Run(run).history().to_pylist()
    bags = Run(run).splits().column("split").to_pylist().count("train")
    speed = [row["value"] for row in rows if row["metric"] == "bags_per_sec"]
    waiting = [row["value"] for row in rows if row["metric"] == "waiting"]
    return {
        "seconds": ended - begun,
        "first_step_s": float(Path(os.environ[FIRST_STEP]).read_text()) - begun,
        **{f"epoch{k + 1}_s": bags / each for k, each in enumerate(speed)},
        **{f"waiting{k + 1}": each for k, each in enumerate(waiting)},
    }


def evaluate(place: Place) -> Row:
    """``milcore evaluate --no-baselines --attention parquet`` of the run that ``train`` left."""
    mc.evaluate(place.newest("run0"), baselines=False, attention_formats=("parquet",))
    return {}


def h5_shapes(place: Place) -> Row:
    """Number of instances in each h5 file, which its header holds."""
    return _over_slides(place, "h5", lambda uri: _h5(uri, lambda file: file["feats"].shape))


def h5_epoch(place: Place) -> Row:
    """Each h5 file read whole, one after another."""
    return _over_slides(place, "h5", lambda uri: _h5(uri, lambda file: (file["feats"][:], file["coords"][:])))


def pt_epoch(place: Place) -> Row:
    """Each .pt file read whole, one after another; there is no other way to its shape."""
    return _over_slides(place, "pt", lambda uri: torch.load(io.BytesIO(storage.read_bytes(uri))).shape)


def _h5(uri: str, read: Callable[[h5py.File], object]) -> object:
    with fsspec.open(uri, "rb") as remote, h5py.File(remote, "r") as file:
        return read(file)


def _over_slides(place: Place, kind: str, read: Callable[[str], object]) -> Row:
    begun, done = time.perf_counter(), 0
    for slide_id in place.case.slide_ids:
        read(f"{place.uri}/{kind}/{slide_id}.{kind}")
        done += 1
        if time.perf_counter() - begun > PEER_SECONDS:
            break
    return {"slides_read": done}


STEPS: dict[str, Callable[[Place], Row]] = {
    "import": import_store,
    "open": open_store,
    "info": info,
    "plan": plan,
    "train": train,
    "train on Ray": train_on_ray,
    "evaluate": evaluate,
    "h5 shapes": h5_shapes,
    "h5 epoch": h5_epoch,
    "pt epoch": pt_epoch,
}


def main(arguments: Sequence[str]) -> None:
    """Measure one step."""
    step, uri, slides, instances, out = arguments
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        os.environ[FIRST_STEP] = str(Path(folder, "first_step"))
        before, begun, cpu = resident_mb("VmRSS"), time.perf_counter(), time.process_time()
        row = STEPS[step](Place(uri, Case(int(slides), int(instances)), out))
        seconds, cpu_s = time.perf_counter() - begun, time.process_time() - cpu
    print(
        json.dumps({"seconds": seconds, "cpu_s": cpu_s, "imports_mb": before, "peak_mb": resident_mb("VmHWM"), **row})
    )


if __name__ == "__main__":
    main(sys.argv[1:])
