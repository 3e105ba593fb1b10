"""Launch ingest, encode, train, tune and predict: here, on Ray, or as a job.

A job runs on a standing Ray cluster or on one made for it. Each function takes a prepared folder or store and a
LaunchConfig and returns once the result is in storage. Ray is imported only when it is used.
"""

import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING

from milcore.cluster.jobs.heartbeat import heartbeat_uri, keep_heartbeat
from milcore.config import Config, EncodeConfig, IngestConfig, LaunchConfig, TrainConfig
from milcore.encoders.extraction.request import EncodedSlide, slides_to_encode, with_feature_name
from milcore.errors import ClusterError
from milcore.ingestion.cohort import IngestCounts, ingest, ingest_counts, stored_counts
from milcore.runtime import storage
from milcore.runtime.lease import lease
from milcore.runtime.progress import PatchProgress, track
from milcore.store.store import PatchStore
from milcore.training.run_folder import Run
from milcore.training.sweep import Sweep

if TYPE_CHECKING:
    from milcore.encoders.extraction.batches import Step

# ruff: noqa: PLC0415 - importing Ray and torch takes seconds and memory: a step that computes in this process does not
# need the one, a step that only launches a job not the other


def ingest_with(store_uri: str, config: IngestConfig, launch: LaunchConfig) -> IngestCounts:
    """Ingest the planned cohort of a store on Ray.

    All slides are dealt to the workers of one cluster or job.

    Raises:
        MILError: slides are unaccounted for, such as those of a job that saw another storage.
    """
    store_uri = storage.absolute(store_uri)
    if launch.is_job:
        _run_as_job(["ingest", store_uri, *config_flags(config)], launch)
        return stored_counts(PatchStore(store_uri))
    from milcore.cluster.workers.connect import connected
    from milcore.cluster.workers.map import map_on_ray

    slides = len(PatchStore(store_uri).manifest().slides)
    with connected(launch):
        outcomes = ingest(store_uri, config, launch.workers, map_slides=functools.partial(map_on_ray, launch=launch))
        return ingest_counts(track(outcomes, "ingest", slides))


def encode_with(store_uri: str, config: EncodeConfig, launch: LaunchConfig) -> list[EncodedSlide]:
    """Encode every slide of a store that lacks these features; returns all slides."""
    store_uri, config = storage.absolute(store_uri), with_feature_name(config)
    slides = slides_to_encode(store_uri, config)
    if launch.is_job:
        _run_as_job(["encode", store_uri, *config_flags(config)], launch)
        return [EncodedSlide(slide_id, patches, skipped=False) for slide_id, patches in slides.items()]
    from milcore.encoders.extraction.encode import encode_steps

    device = "cuda" if launch.use_gpu else "cpu"
    if launch.workers == 0:
        return _collect_slides(encode_steps(store_uri, config, device), slides)
    from milcore.cluster.workers.connect import connected
    from milcore.cluster.workers.encode import encode_on_ray

    with connected(launch):
        steps = encode_steps(store_uri, config, device, functools.partial(encode_on_ray, launch=launch))
        return _collect_slides(steps, slides)


def _collect_slides(steps: "Iterator[Step]", slides: dict[str, int]) -> list[EncodedSlide]:
    """Collect the slides of encoding steps, showing progress in patches."""
    encoded: list[EncodedSlide] = []
    progress = PatchProgress("encode", sum(slides.values()))
    for step in steps:
        progress.show(step.patches, step.slide.patches if step.slide is not None and step.slide.skipped else 0)
        encoded += [step.slide] if step.slide is not None else []
    return encoded


def train_with(run_uri: str, launch: LaunchConfig) -> None:
    """Train a prepared run, or its folds side by side.

    A finished run is left as it is, an interrupted one is resumed.

    Raises:
        BusyError: another process trains it.
    """
    run_uri = storage.absolute(run_uri)
    run = Run(run_uri)
    if run.is_finished():
        return
    if launch.is_job:
        _run_as_job(["train", run_uri], launch)
        if not run.is_finished():
            raise ClusterError(f"the job ended without weights in {run_uri}; does the cluster see the same storage?")
        return
    # files and their digests, checkpoints and Ray's snapshot are those of one process
    with lease(run_uri, "run"):
        if not run.is_finished():
            _train(run, launch)


def _train(run: Run, launch: LaunchConfig) -> None:
    """Train in this process, or on Ray workers of one cluster."""
    from milcore.mil.device import compute_device
    from milcore.training.context import LocalContext
    from milcore.training.run import train_run
    from milcore.training.tensorboard import RunObserver

    spec = run.spec()
    if spec.folds:
        _train_folds(run.uri, launch)
    elif launch.workers == 0:
        watch = RunObserver(run.uri, spec.train.epochs)
        train_run(run.uri, LocalContext(run.checkpoints_uri, compute_device(launch.use_gpu), watch))
    else:
        from milcore.cluster.workers.train import train_on_ray

        train_on_ray(run.uri, launch)


def _train_folds(run_uri: str, launch: LaunchConfig) -> None:
    """Train each fold on one worker, ``launch.workers`` folds at a time."""
    from milcore.mil.device import compute_device
    from milcore.training.cross_validation import train_folds

    if launch.workers == 0:
        train_folds(run_uri, compute_device(launch.use_gpu).type)
        return
    from milcore.cluster.workers.capacity import task_resources, wait_for_workers, workers_per_node
    from milcore.cluster.workers.connect import connected
    from milcore.cluster.workers.map import map_on_ray

    with connected(launch):
        # how many folds share the memory of a node is known once there is one
        wait_for_workers(launch, 1, task_resources(launch))
        fan_out = functools.partial(map_on_ray, launch=launch)
        train_folds(run_uri, "cuda" if launch.use_gpu else "cpu", fan_out, workers_per_node(launch))


def tune_with(out_uri: str, launch: LaunchConfig) -> TrainConfig:
    """Run a prepared sweep and return its best settings.

    At least one trial runs at a time.

    Raises:
        BusyError: another process works on the sweep.
    """
    out_uri = storage.absolute(out_uri)
    sweep = Sweep(out_uri)
    if sweep.best() is None:
        if launch.names_job:
            _run_as_job(["tune", out_uri], launch)
        else:
            from milcore.cluster.workers.tune import tune_on_ray

            with lease(out_uri, "sweep"):
                tune_on_ray(out_uri, launch)
    best = sweep.best()
    if best is None:
        raise ClusterError(f"the sweep at {out_uri} ended without best.json; does the cluster see the same storage?")
    return best


def predict_with(out_uri: str, launch: LaunchConfig) -> None:
    """Predict a store into a prepared folder; what is there already stays.

    Raises:
        ClusterError: the job wrote another storage.
    """
    from milcore.evaluation.predict_store import SUMMARY, predict_parts

    out_uri, device = storage.absolute(out_uri), "cuda" if launch.use_gpu else "cpu"
    if launch.is_job:
        _run_as_job(["predict", out_uri], launch)
        if not storage.exists(storage.join(out_uri, SUMMARY)):
            raise ClusterError(f"the job ended without {SUMMARY} in {out_uri}; does the cluster see the same storage?")
        return
    if launch.workers == 0:
        from milcore.mil.device import compute_device

        predict_parts(out_uri, compute_device(launch.use_gpu).type)
        return
    from milcore.cluster.workers.capacity import task_resources, wait_for_workers, workers_per_node
    from milcore.cluster.workers.connect import connected
    from milcore.cluster.workers.map import map_on_ray

    with connected(launch):
        # how many workers share the memory of a node is known once there is one
        wait_for_workers(launch, 1, task_resources(launch))
        predict_parts(out_uri, device, functools.partial(map_on_ray, launch=launch), workers_per_node(launch))


def _run_as_job(command: list[str], launch: LaunchConfig) -> None:
    """Run a step as a job, keeping its heartbeat while this process follows it.

    Args:
        command: step, folder and flags of ``python -m milcore.cluster``.
        launch: cluster and workers.
    """
    step, folder_uri, *_ = command
    heartbeat = heartbeat_uri(folder_uri, step)
    # 0 workers of a sweep on a standing cluster: as many trials at a time as it holds
    least = 0 if step == "tune" and launch.ray_address != "rayjob" else 1
    workers = ["--workers", str(max(least, launch.workers)), *(["--use-gpu"] if launch.use_gpu else [])]
    arguments = (*command, *workers, "--heartbeat", heartbeat)
    with keep_heartbeat(heartbeat):
        if launch.ray_address == "rayjob":
            from milcore.cluster.jobs.rayjob import run_rayjob

            run_rayjob(arguments, launch)
        else:
            from milcore.cluster.jobs.submission import run_job

            run_job(arguments, launch)


def field_flag(name: str) -> str:
    """Flag of a config's field in ``python -m milcore.cluster``."""
    return f"--{name.replace('_', '-')}"


def config_flags(config: Config) -> list[str]:
    """Flags of ``python -m milcore.cluster``: one for every field that is not None."""
    values = {field_flag(name): getattr(config, name) for name in type(config).model_fields}
    return [word for flag, value in values.items() if value is not None for word in (flag, str(value))]
