"""Where a step computes: in this process, on Ray workers, as a job on a standing cluster or on one made for it.

Each function takes a prepared folder or store and a LaunchConfig and returns once the result is in storage. Ray is
imported only when it is used.
"""

import functools
from collections.abc import Iterator

import torch

from milcore.cluster.jobs.heartbeat import beating, heartbeat_uri
from milcore.config import EncodeConfig, LaunchConfig, TrainConfig
from milcore.encoders.extraction.batches import Step
from milcore.encoders.extraction.encode import encode_steps, named, slides_to_encode
from milcore.encoders.extraction.reader import EncodedSlide
from milcore.errors import ClusterError, InputError
from milcore.runtime import storage
from milcore.runtime.progress import PatchProgress
from milcore.training.context import LocalContext
from milcore.training.cross_validation import train_folds
from milcore.training.run import train_run
from milcore.training.run_folder import CHECKPOINTS, is_finished, read_spec
from milcore.training.sweep import read_best
from milcore.training.tensorboard import RunWatch

RAYJOB = "rayjob"

# ruff: noqa: PLC0415 - importing Ray takes seconds, and what computes here does not need it


def encode_with(store_uri: str, config: EncodeConfig, launch: LaunchConfig) -> list[EncodedSlide]:
    """Give every slide of a store its features."""
    store_uri, config = storage.absolute(store_uri), named(config)
    slides = slides_to_encode(store_uri)
    if _is_job(launch) and launch.workers > 0:
        _run_elsewhere(["encode", store_uri, *_encode_flags(config)], launch)
        return [EncodedSlide(slide_id, patches, skipped=False) for slide_id, patches in slides.items()]
    device = "cuda" if launch.use_gpu else "cpu"
    if launch.workers == 0:
        return _encoded(encode_steps(store_uri, config, device), slides)
    from milcore.cluster.workers.connect import connected
    from milcore.cluster.workers.encode import encode_on_ray

    with connected(launch):
        return _encoded(
            encode_steps(store_uri, config, device, functools.partial(encode_on_ray, launch=launch)), slides
        )


def _encoded(steps: Iterator[Step], slides: dict[str, int]) -> list[EncodedSlide]:
    """The slides as they end, while progress is shown in patches."""
    encoded: list[EncodedSlide] = []
    lines = PatchProgress("encode", sum(slides.values()))
    for step in steps:
        lines.show(step.patches, step.slide.patches if step.slide is not None and step.slide.skipped else 0)
        encoded += [step.slide] if step.slide is not None else []
    return encoded


def train_with(run_uri: str, launch: LaunchConfig) -> None:
    """Train a prepared run, or its folds side by side; a finished one is left as it is, one cut short goes on."""
    run_uri = storage.absolute(run_uri)
    if is_finished(run_uri):
        return
    if _is_job(launch) and launch.workers > 0:
        _run_elsewhere(["train", run_uri], launch)
        if not is_finished(run_uri):
            raise ClusterError(f"the job ended without weights in {run_uri}; does the cluster see the same storage?")
    elif read_spec(run_uri).folds:
        _train_folds(run_uri, launch)
    elif launch.workers == 0:
        watch = RunWatch(run_uri, read_spec(run_uri).train.epochs)
        train_run(run_uri, LocalContext(storage.join(run_uri, CHECKPOINTS), _device(launch), watch))
    else:
        from milcore.cluster.workers.train import train_on_ray

        train_on_ray(run_uri, launch)


def _train_folds(run_uri: str, launch: LaunchConfig) -> None:
    """One worker for each fold, ``launch.workers`` folds at a time."""
    if launch.workers == 0:
        train_folds(run_uri, _device(launch).type)
        return
    from milcore.cluster.workers.connect import connected
    from milcore.cluster.workers.map import map_on_ray

    with connected(launch):
        train_folds(run_uri, "cuda" if launch.use_gpu else "cpu", functools.partial(map_on_ray, launch=launch))


def tune_with(out_uri: str, launch: LaunchConfig) -> TrainConfig:
    """Run a prepared sweep, at least one trial at a time; the settings it chose."""
    out_uri = storage.absolute(out_uri)
    if read_best(out_uri) is None:
        if _is_job(launch):
            _run_elsewhere(["tune", out_uri], launch)
        else:
            from milcore.cluster.workers.tune import tune_on_ray

            tune_on_ray(out_uri, launch)
    best = read_best(out_uri)
    if best is None:
        raise ClusterError(f"the sweep at {out_uri} ended without best.json; does the cluster see the same storage?")
    return best


def _is_job(launch: LaunchConfig) -> bool:
    return launch.ray_address == RAYJOB or launch.ray_address.startswith(("http://", "https://"))


def _run_elsewhere(work: list[str], launch: LaunchConfig) -> None:
    """Run the work as a job, and give it a sign of life as long as this process waits for it."""
    step, folder_uri, *_ = work
    heartbeat = heartbeat_uri(folder_uri, step)
    # a sweep on a standing cluster may leave it to the cluster
    least = 0 if step == "tune" and launch.ray_address != RAYJOB else 1
    workers = ["--workers", str(max(least, launch.workers)), *(["--use-gpu"] if launch.use_gpu else [])]
    arguments = (*work, *workers, "--heartbeat", heartbeat)
    with beating(heartbeat):
        if launch.ray_address == RAYJOB:
            from milcore.cluster.jobs.rayjob import run_rayjob

            run_rayjob(arguments, launch)
        else:
            from milcore.cluster.jobs.submission import run_job

            run_job(arguments, launch)


def _device(launch: LaunchConfig) -> torch.device:
    if launch.use_gpu and not torch.cuda.is_available():
        raise InputError("--use-gpu: no CUDA device here; run on a machine with a GPU or leave the flag out")
    return torch.device("cuda" if launch.use_gpu else "cpu")


def _encode_flags(config: EncodeConfig) -> list[str]:
    return [
        "--encoder",
        config.encoder,
        "--name",
        str(config.name),
        "--patches-per-batch",
        str(config.patches_per_batch),
    ]
