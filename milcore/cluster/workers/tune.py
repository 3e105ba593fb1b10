"""Ray Tune over pooling, learning rate and what else is named: each trial is one worker that runs ``fit``.

ASHA stops trials left behind. The trials are the same for the same seed; which of them are stopped early hangs on how
fast they run beside each other.
"""

import functools
import math
from typing import Any

import pyarrow.compute as pc
import ray
import torch
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler

from milcore.cluster.workers.connect import connected, environment, room, wait_for_room
from milcore.cluster.workers.context import FoldsOfTrial, TrialContext, calm_logging
from milcore.cohort.splits import add_folds
from milcore.config import LaunchConfig, SplitConfig, TrainConfig, TuneConfig
from milcore.mil.bags.bags import Bags
from milcore.mil.bags.load import load_bags
from milcore.runtime import storage
from milcore.runtime.progress import log_line
from milcore.training.context import LocalContext
from milcore.training.loop import fit
from milcore.training.run_folder import read_splits
from milcore.training.sweep import (
    SweepSpec,
    TrialResult,
    publish,
    read_best,
    read_sweep,
    read_verdict,
    searched,
    trial_configs,
)

RAY_FOLDER = "trials"
FINISHED = "finished"
KEPT = "kept"
FIGURES = ("score", "val_loss", "val_auroc", "val_auroc_se", "epochs")
# Tune's own loggers write files nobody reads; what a resumption finds is its snapshot, taken every so many seconds
TUNE_ENVIRONMENT = {"TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1", "TUNE_GLOBAL_CHECKPOINT_S": "5"}


def tune_on_ray(out_uri: str, launch: LaunchConfig) -> TrainConfig:
    """Run a prepared sweep; one cut short goes on, a finished one is only read.

    ``launch.workers`` trials run at a time (0: as many as the cluster holds).

    A trial that fails is kept in ``trials.parquet`` with its reason.

    Raises:
        ClusterError: no cluster answers, it has no room, trials are missing, or none succeeded.
    """
    out_uri = storage.absolute(out_uri)
    best = read_best(out_uri)
    if best is not None:
        return best
    spec = read_sweep(out_uri)
    with connected(launch), environment(TUNE_ENVIRONMENT):
        wait_for_room(1, _reserved(launch))
        results = _results(spec, _tuner(out_uri, spec, launch).fit())
    best = publish(out_uri, spec, results)
    log_line(read_verdict(out_uri).line)
    for folder in (RAY_FOLDER, FINISHED):
        storage.remove(storage.join(out_uri, folder))
    return best


def _tuner(out_uri: str, spec: SweepSpec, launch: LaunchConfig) -> tune.Tuner:
    reserved = _reserved(launch)
    trainable = tune.with_resources(_run_trial, {name.lower(): amount for name, amount in reserved.items()})
    begun = storage.join(out_uri, RAY_FOLDER)
    if tune.Tuner.can_restore(begun):
        return tune.Tuner.restore(begun, trainable=trainable, resume_unfinished=True, restart_errored=True)
    return tune.Tuner(
        trainable,
        param_space={
            "trial": tune.grid_search(list(range(spec.tune.trials))),
            "out_uri": out_uri,
            "device": "cuda" if launch.use_gpu else "cpu",
        },
        tune_config=tune.TuneConfig(
            metric="score",
            mode="max",
            max_concurrent_trials=launch.workers or room(reserved),
            reuse_actors=True,
            scheduler=_scheduler(spec.tune),
            trial_dirname_creator=_trial_folder,
        ),
        run_config=tune.RunConfig(
            name=RAY_FOLDER,
            storage_path=out_uri,
            verbose=0,
            callbacks=[_FinishedTrials(out_uri, spec.tune)],
            failure_config=tune.FailureConfig(max_failures=1),
            # all: a sweep cut short goes on from what Tune knew seconds before, and that names an older checkpoint
            checkpoint_config=tune.CheckpointConfig(num_to_keep=None),
        ),
    )


def _reserved(launch: LaunchConfig) -> dict[str, float]:
    """What a trial reserves of the connected cluster; trials on this machine's own share its GPUs."""
    every: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]  # Ray ships it so
    gpus = int(every.get("GPU", 0)) if launch.ray_address == "local" else 0
    return {"CPU": 1.0, "GPU": gpu_share(launch.workers, gpus) if launch.use_gpu else 0.0}


def gpu_share(trials: int, gpus: int) -> float:
    """The part of a GPU that each of so many trials at a time gets: none is spread over two; whole ones if unknown."""
    return 1.0 / math.ceil(trials / gpus) if trials > gpus > 0 else 1.0


def _scheduler(config: TuneConfig) -> ASHAScheduler:
    """Stops trials left behind: after a quarter of the epochs and so on, or with folds after any of them."""
    reports = config.objective_folds or config.train.epochs
    grace = 1 if config.objective_folds else max(1, reports // 4)
    # above the reports, since a trial stopped at max_t would lose its last one
    return ASHAScheduler(max_t=reports + 1, grace_period=grace, reduction_factor=2)


def _run_trial(config: dict[str, Any]) -> None:
    """What a trial's worker runs."""
    calm_logging()
    finished = _finished_uri(config["out_uri"], config["trial"])
    if storage.exists(finished):
        tune.report({**storage.read_json(finished), KEPT: True})
        return
    spec = read_sweep(config["out_uri"])
    settings, device = trial_configs(spec.tune)[config["trial"]], torch.device(config["device"])
    bags = _bags(config["out_uri"])
    if spec.tune.objective_folds == 0:
        fit(settings, bags, TrialContext(device))
        return
    trial = FoldsOfTrial()
    for fold in range(trial.done, spec.tune.objective_folds):
        result = fit(settings, _without_fold(config["out_uri"], bags, fold), LocalContext(None, device))
        trial.report(result.best, result.best_epoch + 1)


def _without_fold(out_uri: str, bags: Bags, fold: int) -> Bags:
    """The bags outside the test split, those of a fold's patients for validation and the others for training."""
    tune_config = read_sweep(out_uri).tune
    splits = read_splits(out_uri)
    dealt = SplitConfig(split_seed=tune_config.tune_seed, folds=tune_config.objective_folds)
    fold_of = {row["patient_id"]: row["fold"] for row in add_folds(splits, dealt).to_pylist()}
    return bags.with_splits({its.bag_id: "val" if fold_of[its.patient_id] == fold else "train" for its in bags.entries})


@functools.lru_cache(maxsize=1)
def _bags(out_uri: str) -> Bags:
    """The bags of a sweep without those of the test split, kept by a worker from trial to trial."""
    spec = read_sweep(out_uri)
    splits = read_splits(out_uri)
    return load_bags(spec.store_uri, spec.tune.train, splits.filter(pc.field("split") != "test"))


def _trial_folder(trial: Trial) -> str:
    return f"{trial.trial_id}"


def _results(spec: SweepSpec, grid: tune.ResultGrid) -> list[TrialResult]:
    settings = trial_configs(spec.tune)
    return [_result(spec.tune, settings, grid[place]) for place in range(len(grid))]


def _result(config: TuneConfig, configs: list[TrainConfig], result: tune.Result) -> TrialResult:
    trial = int((result.config or {})["trial"])
    settings = configs[trial]
    seen = result.metrics or {}
    reason = None if result.error is None else str(result.error).strip().rpartition("\n")[2]
    return TrialResult(
        trial=trial,
        pooling=settings.pooling,
        learning_rate=settings.learning_rate,
        epochs=seen.get("epochs", 0),
        val_loss=seen.get("val_loss", float("inf")),
        val_auroc=seen.get("val_auroc", float("nan")),
        state="ok" if reason is None else "failed",
        reason=reason,
        val_auroc_se=seen.get("val_auroc_se", float("nan")),
        searched=searched(config, settings),
    )


def _finished_uri(out_uri: str, trial: int) -> str:
    return storage.join(out_uri, FINISHED, f"{trial}.json")


class _FinishedTrials(tune.Callback):
    """A line for every trial that ends, and its figures kept at once: Tune's snapshot may be seconds behind."""

    def __init__(self, out_uri: str, config: TuneConfig) -> None:
        self._out_uri = out_uri
        self._configs = trial_configs(config)
        self._ended = 0

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:  # noqa: ARG002 - Tune calls it so
        """Keep its figures and say how it did."""
        seen = trial.last_result
        try:
            storage.write_json(
                _finished_uri(self._out_uri, trial.config["trial"]),
                {name: seen[name] for name in FIGURES if name in seen},
            )
        except storage.IO_ERRORS as error:
            log_line(f"the figures of this trial are in Tune's snapshot only: {error}")
        figures = f"validation AUROC {seen['val_auroc']:.3f}, loss {seen['val_loss']:.4f}, {seen['epochs']} epochs"
        self._say(trial, figures + (", trained before" if KEPT in seen else ""))

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:  # noqa: ARG002 - Tune calls it so
        """Say that it failed."""
        self._say(trial, "failed")

    def _say(self, trial: Trial, how: str) -> None:
        self._ended += 1
        number = trial.config["trial"]
        settings = self._configs[number]
        drawn = f"{settings.pooling}, learning rate {settings.learning_rate:.2g}"
        log_line(f"{self._ended}/{len(self._configs)} trials: trial {number}, {drawn}: {how}")
