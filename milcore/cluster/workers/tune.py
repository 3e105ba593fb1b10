"""Run a sweep with Ray Tune: each trial is one worker that runs ``train_model``.

The sweep covers pooling, learning rate and other named settings. ASHA stops the worse trials early. The trials are the
same for the same seed; which of them are stopped depends on how fast they run beside each other.
"""

import functools
import math
import tempfile
from collections import defaultdict
from typing import Any

import pyarrow.compute as pc
import ray
import torch
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler

from milcore.cluster.workers.capacity import wait_for_workers, worker_capacity, workers_per_node
from milcore.cluster.workers.connect import connected
from milcore.cluster.workers.context import FoldTrial, TrialContext, quiet_logging
from milcore.cluster.workers.disk_caches import remove_disk_caches
from milcore.config import LaunchConfig, Target, TrainConfig, TuneConfig
from milcore.mil.bags.bags import Bags
from milcore.mil.bags.load import load_bags
from milcore.mil.memory import sweep_disk_cache_mb, with_memory
from milcore.runtime import storage
from milcore.runtime.digest import with_own_digest, without_own_digest
from milcore.runtime.progress import log_line
from milcore.runtime.thread_limit import default_environment
from milcore.store.disk_cache import cache_folder
from milcore.training.context import LocalContext
from milcore.training.loop import train_model
from milcore.training.search_space import searched_settings, trial_configs
from milcore.training.selection import RANK_METRICS, metric_name
from milcore.training.sweep import (
    TRIAL_FOLDERS,
    Sweep,
    SweepSpec,
    TrialResult,
    publish,
    remove_trial_folders,
    sweep_folds,
)

TRIALS, FINISHED = TRIAL_FOLDERS
FOLDS = "folds.json"
KEPT_METRIC = "kept"
# no files of Tune's own loggers, and no table of the experiment, whose folder is a temporary one; Ctrl-C is the
# command's: Tune would take it for the end of a sweep
TUNE_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1", "RAY_AIR_NEW_OUTPUT": "0", "TUNE_DISABLE_SIGINT_HANDLER": "1",
}  # fmt: skip


def tune_on_ray(out_uri: str, launch: LaunchConfig) -> TrainConfig:
    """Run a prepared sweep and return its best settings.

    An interrupted sweep is resumed from what its trials have kept, a finished one is only read. ``launch.workers``
    trials run at a time (0: as many as the cluster holds). A trial that fails is in ``trials.parquet`` with its reason.

    Raises:
        ClusterError: no cluster answers, it is too small, trials are missing, or none succeeded.
    """
    out_uri = storage.absolute(out_uri)
    sweep = Sweep(out_uri)
    best = sweep.best()
    if best is not None:
        return best
    spec = sweep.spec()
    with connected(launch), default_environment(TUNE_ENVIRONMENT):
        wait_for_workers(launch, 1, _trial_resources(launch))
        disk_mb = sweep_disk_cache_mb(spec.tune.train, workers_per_node(launch))
        caches = bool(disk_mb) and not storage.is_local(spec.store_uri)
        if caches:
            log_line(f"disk cache: up to {disk_mb:,.0f} MB of features in {cache_folder()} of each machine")
        with tempfile.TemporaryDirectory(prefix="milcore-tune-") as folder:
            results = _results(spec, _tuner(out_uri, spec, launch, folder).fit())
        if caches:
            remove_disk_caches()
    best = publish(out_uri, spec, results)
    log_line(sweep.verdict().line)
    remove_trial_folders(out_uri)
    return best


def _tuner(out_uri: str, spec: SweepSpec, launch: LaunchConfig, folder: str) -> tune.Tuner:
    """Ray Tune over the trials.

    Args:
        out_uri: the sweep folder.
        spec: its trials.
        launch: workers and their resources.
        folder: local, for what Tune writes of its own: pickles that nothing reads.
    """
    resources = _trial_resources(launch)
    return tune.Tuner(
        tune.with_resources(_run_trial, {name.lower(): amount for name, amount in resources.items()}),
        param_space={
            "trial": tune.grid_search(list(range(spec.tune.trials))),
            "out_uri": out_uri,
            "device": "cuda" if launch.use_gpu else "cpu",
            "workers_here": workers_per_node(launch),
        },
        tune_config=tune.TuneConfig(
            metric="score",
            mode="max",
            max_concurrent_trials=launch.workers or worker_capacity(resources),
            reuse_actors=True,
            scheduler=_scheduler(spec.tune),
            trial_dirname_creator=_trial_folder,
        ),
        run_config=tune.RunConfig(
            name=TRIALS,
            storage_path=folder,
            verbose=0,
            progress_reporter=tune.CLIReporter(),  # that of notebooks clears the cell, even where it has nothing to say
            callbacks=[_TrialRecorder(out_uri, spec.tune)],
            failure_config=tune.FailureConfig(max_failures=1),
        ),
    )


def _trial_resources(launch: LaunchConfig) -> dict[str, float]:
    """Resources that a trial reserves; on a local cluster trials share GPUs."""
    total: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]  # Ray has no types for it
    gpus = int(total.get("GPU", 0)) if launch.ray_address == "local" else 0
    return {"CPU": 1.0, "GPU": gpu_share(launch.workers, gpus) if launch.use_gpu else 0.0}


def gpu_share(trials: int, gpus: int) -> float:
    """Fraction of a GPU for each of several concurrent trials.

    No trial is divided over two GPUs. 1.0 where there are enough of them, or their number is unknown (0).
    """
    return 1.0 / math.ceil(trials / gpus) if trials > gpus > 0 else 1.0


def _scheduler(config: TuneConfig) -> ASHAScheduler:
    """ASHA, which stops the worse half of the trials at each rung.

    The first rung is a quarter of the epochs; with folds it is the first fold.
    """
    reports = config.objective_folds or config.train.epochs
    grace = 1 if config.objective_folds else max(1, reports // 4)
    # above the reports, since a trial stopped at max_t would lose its last one
    return ASHAScheduler(max_t=reports + 1, grace_period=grace, reduction_factor=2)


def _run_trial(config: dict[str, Any]) -> None:
    """Train a trial in one worker; Ray Tune runs this."""
    quiet_logging()
    out_uri, number = config["out_uri"], config["trial"]
    finished = _finished_uri(out_uri, number)
    if storage.exists(finished):
        _report_again(without_own_digest(storage.read_json(finished), finished))
        return
    spec = Sweep(out_uri).spec()
    workers, device = config["workers_here"], torch.device(config["device"])
    settings = with_memory(trial_configs(spec.tune)[number], workers)
    folder = storage.join(out_uri, TRIALS, str(number))
    bags = _bags(out_uri, workers)
    if spec.tune.objective_folds == 0:
        train_model(settings, bags, TrialContext(folder, device, workers, settings.target))
        return
    trial = FoldTrial(storage.join(folder, FOLDS), settings.target)
    for fold in range(trial.done, spec.tune.objective_folds):
        result = train_model(settings, _without_fold(out_uri, bags, fold), LocalContext(None, device))
        trial.report(result.best, result.best_epoch + 1)


def _report_again(record: dict[str, Any]) -> None:
    """Report a trial that has ended before, with every score it had.

    The scheduler compares the others by them.
    """
    scores = record.pop("scores", [record["score"]])
    for score in scores:
        tune.report({**record, "score": score, KEPT_METRIC: True})


def _without_fold(out_uri: str, bags: Bags, fold: int) -> Bags:
    """The bags with a fold's patients for validation and the others for training."""
    fold_of = _folds(out_uri)
    split_of = {bag.bag_id: "val" if fold_of[bag.patient_id] == fold else "train" for bag in bags.entries}
    return bags.with_splits(split_of)


@functools.lru_cache(maxsize=1)
def _folds(out_uri: str) -> dict[str, int]:
    """Fold of each patient; whole sites take a while to divide."""
    sweep = Sweep(out_uri)
    splits = sweep_folds(sweep.splits(), sweep.spec().tune)
    return {row["patient_id"]: row["fold"] for row in splits.to_pylist()}


@functools.lru_cache(maxsize=1)
def _bags(out_uri: str, workers_here: int) -> Bags:
    """Bags of a sweep without the test split; a worker caches them between trials."""
    sweep = Sweep(out_uri)
    spec, splits = sweep.spec(), sweep.splits().filter(pc.field("split") != "test")
    config = with_memory(spec.tune.train, workers_here)
    disk_mb = sweep_disk_cache_mb(config, workers_here)
    return load_bags(spec.store_uri, config.model_copy(update={"disk_cache_mb": disk_mb}), splits, spec.tune.poolings)


def _trial_folder(trial: Trial) -> str:
    return f"{trial.trial_id}"


def _results(spec: SweepSpec, grid: tune.ResultGrid) -> list[TrialResult]:
    settings = trial_configs(spec.tune)
    return [_result(spec.tune, settings, grid[index]) for index in range(len(grid))]


def _result(config: TuneConfig, configs: list[TrainConfig], result: tune.Result) -> TrialResult:
    trial = int((result.config or {})["trial"])
    settings = configs[trial]
    metrics = result.metrics or {}
    reason = None if result.error is None else str(result.error).strip().rpartition("\n")[2]
    return TrialResult(
        trial=trial,
        pooling=settings.pooling,
        learning_rate=settings.learning_rate,
        epochs=metrics.get("epochs", 0),
        val_loss=metrics.get("val_loss", float("inf")),
        val_metric=metrics.get(metric_name(config.train.target), float("nan")),
        state="ok" if reason is None else "failed",
        reason=reason,
        val_metric_se=metrics.get(f"{metric_name(config.train.target)}_se", float("nan")),
        searched=searched_settings(config, settings),
    )


def _figures(target: Target) -> tuple[str, ...]:
    """Names of the figures that are kept of a trial."""
    metric = metric_name(target)
    return ("score", "val_loss", metric, f"{metric}_se", "epochs")


def _finished_uri(out_uri: str, trial: int) -> str:
    return storage.join(out_uri, FINISHED, f"{trial}.json")


class _TrialRecorder(tune.Callback):
    """Logs every trial that ends and writes its figures at once."""

    def __init__(self, out_uri: str, config: TuneConfig) -> None:
        self._out_uri = out_uri
        self._configs, self._target = trial_configs(config), config.train.target
        self._scores: dict[int, list[float]] = defaultdict(list)
        self._ended = 0

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:  # noqa: ARG002 - Tune calls it so
        """Forget the scores of an attempt that failed: the next one reports them again."""
        self._scores.pop(trial.config["trial"], None)

    def on_trial_result(
        self,
        iteration: int,  # noqa: ARG002
        trials: list[Trial],  # noqa: ARG002
        trial: Trial,
        result: dict[str, Any],
        **info: Any,  # noqa: ARG002
    ) -> None:
        """Remember the score, by which a resumed sweep compares its trials again."""
        self._scores[trial.config["trial"]].append(result["score"])

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:  # noqa: ARG002 - Tune calls it so
        """Write the trial's figures and log them."""
        number, metrics = trial.config["trial"], trial.last_result
        if KEPT_METRIC not in metrics:
            self._write(number, {name: metrics[name] for name in _figures(self._target) if name in metrics})
        metric, loss, epochs = metrics[metric_name(self._target)], metrics["val_loss"], metrics["epochs"]
        title = RANK_METRICS[self._target].title
        figures = f"validation {title} {metric:.3f}, loss {loss:.4f}, {epochs} epochs"
        self._log(trial, figures + (", trained before" if KEPT_METRIC in metrics else ""))

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:  # noqa: ARG002 - Tune calls it so
        """Log that the trial failed."""
        self._log(trial, "failed")

    def _write(self, number: int, figures: dict[str, float]) -> None:
        record = with_own_digest({**figures, "scores": self._scores[number]})
        try:
            storage.write_json(_finished_uri(self._out_uri, number), record)
        except storage.IO_ERRORS as error:
            log_line(f"trial {number} would be trained again if the sweep were resumed: {error}")

    def _log(self, trial: Trial, outcome: str) -> None:
        self._ended += 1
        number = trial.config["trial"]
        settings = self._configs[number]
        sample = f"{settings.pooling}, learning rate {settings.learning_rate:.2g}"
        log_line(f"{self._ended}/{len(self._configs)} trials: trial {number}, {sample}: {outcome}")
