"""A sweep folder: its trials, their results and the best of them; without Ray.

``config.json`` and ``splits.parquet`` are written before the first trial; ``trials.parquet``, ``verdict.json`` and
``best.json`` at the end, ``best.json`` last: a sweep that has it is finished.
"""

import contextlib
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import pyarrow as pa

from milcore import __version__
from milcore.cohort.manifest import Manifest
from milcore.cohort.splits import add_folds, splits_digest
from milcore.cohort.targets import COHORT_TARGETS
from milcore.config import (
    FolderSpec,
    SplitConfig,
    Target,
    TrainConfig,
    TuneConfig,
    parse_config,
    upgrade_train,
    without_unread,
)
from milcore.errors import ClusterError, InputError
from milcore.metrics.auroc import auroc_standard_error
from milcore.runtime import html, storage
from milcore.runtime.allow_list import check_uri
from milcore.runtime.lease import lease
from milcore.store.store import PatchStore
from milcore.training import run_files
from milcore.training.instances import read_instances
from milcore.training.run import check_labels_kept, choose_splits
from milcore.training.run_folder import check_no_other_files, claim_folder, config_uri, read_claim, read_splits
from milcore.training.search_space import trial_configs
from milcore.training.selection import RANK_METRICS, Validation, metric_name

# 97.5 % quantile of the normal distribution: a two-sided test at 5 %
SEPARABLE_AT = 1.96
# folders of Ray and of ended trials; they are removed at the end
TRIAL_FOLDERS = ("trials", "finished")


class SweepSpec(FolderSpec):
    """The ``config.json`` of a sweep folder.

    Written before the first trial, and compared when the folder is used again.
    """

    folders: ClassVar[tuple[str, ...]] = ("store_uri",)
    store_uri: str
    instance_digest: str
    splits_digest: str
    tune: TuneConfig


class TrialResult(NamedTuple):
    """One row of ``trials.parquet``: a trial and its best epoch on validation.

    Args:
        trial: number, from 0.
        pooling: drawn by the trial.
        learning_rate: drawn by the trial.
        epochs: trained.
        val_loss: mean ``-log P(label)``, or that of another target.
        val_metric: of the target, ``val_auroc`` of classes; NaN where undefined.
        state: ``ok`` or ``failed``.
        reason: of a failure.
        val_metric_se: standard error of ``val_metric``.
        searched: the other settings that the trial drew, by name.
    """

    trial: int
    pooling: str
    learning_rate: float
    epochs: int
    val_loss: float
    val_metric: float
    state: str
    reason: str | None
    val_metric_se: float = math.nan
    searched: tuple[tuple[str, object], ...] = ()


class SweepVerdict(NamedTuple):
    """Comparison of the best trial with the next one on validation.

    Args:
        best: number of the best trial.
        next: number of the second; None where there is one trial.
        difference: of their AUROCs; None where undefined.
        standard_error: of that difference; None where undefined.
        separable: True where the difference exceeds 1.96 standard errors.
        line: the same in words.
    """

    best: int
    next: int | None
    difference: float | None
    standard_error: float | None
    separable: bool
    line: str


@dataclass(frozen=True)
class Sweep:
    """A sweep folder.

    Args:
        uri: the folder.
    """

    uri: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "uri", storage.absolute(os.fspath(self.uri)))

    @property
    def config_uri(self) -> str:
        """``config.json``: store, instances, splits and trials."""
        return config_uri(self.uri)

    @property
    def splits_uri(self) -> str:
        """``splits.parquet``: label and split of every slide."""
        return storage.join(self.uri, "splits.parquet")

    @property
    def trials_uri(self) -> str:
        """``trials.parquet``: a row per trial."""
        return storage.join(self.uri, "trials.parquet")

    @property
    def verdict_uri(self) -> str:
        """``verdict.json``: comparison of the best trial with the next one."""
        return storage.join(self.uri, "verdict.json")

    @property
    def best_uri(self) -> str:
        """``best.json``: settings of the best trial, written last."""
        return storage.join(self.uri, "best.json")

    def spec(self) -> SweepSpec:
        """The content of ``config.json``.

        Raises:
            InputError: the folder holds no sweep.
        """
        spec = read_claim(SweepSpec, self.uri, "sweep", "tune")
        check_uri(spec.store_uri, f"store_uri of {config_uri(self.uri)}")
        return spec

    def splits(self) -> pa.Table:
        """Columns slide_id, patient_id, label, split."""
        return read_splits(self.splits_uri)

    def best(self) -> TrainConfig | None:
        """Settings of the best trial; None until the sweep is finished."""
        try:
            return parse_config(TrainConfig, without_unread(upgrade_train(run_files.read_json(self.best_uri))))
        except FileNotFoundError:
            return None

    def require_best(self) -> TrainConfig:
        """Settings of the best trial.

        Raises:
            InputError: the sweep is not finished.
        """
        best = self.best()
        if best is None:
            raise InputError(f"the sweep at {self.uri} is not finished (best.json is missing); run milcore tune first")
        return best

    def _repr_html_(self) -> str:
        """Verdict and trials, for a notebook."""
        if self.best() is None:
            return html.line(f"{self.uri}: not finished")
        trials = self.trials()
        rows = (row.values() for row in trials.to_pylist())
        return html.line(f"{self.uri}: {self.verdict().line}") + html.table(trials.column_names, rows)

    def trials(self) -> pa.Table:
        """A row per trial of a finished sweep."""
        return run_files.read_table(self.trials_uri)

    def verdict(self) -> SweepVerdict:
        """Comparison of the best trial of a finished sweep with the next one.

        Made anew where an earlier version wrote none.
        """
        with contextlib.suppress(FileNotFoundError):
            return SweepVerdict(**run_files.read_json(self.verdict_uri))
        splits, target = self.splits(), self.spec().tune.train.target
        results = [trial_result(row, target) for row in self.trials().to_pylist()]
        return sweep_verdict([with_standard_error(result, splits) for result in results], target)


def prepare_sweep(store_uri: str, out_uri: str, config: TuneConfig, split_config: SplitConfig) -> SweepSpec:
    """Write ``config.json`` and ``splits.parquet`` of a sweep.

    Args:
        store_uri: patch store to train on.
        out_uri: the sweep folder; one that holds the same sweep is resumed.
        config: the trials and the training they share.
        split_config: fractions and seed of the split, or the splits.parquet to adopt.

    Raises:
        InputError: the folder holds another sweep or other files, or the split lacks a class or validation slides.
        BusyError: another process works on the sweep.
        StoreError: slides lack features or patches to train on.
    """
    trial_configs(config)
    check_no_other_files(out_uri, TRIAL_FOLDERS)
    store_uri = storage.absolute(store_uri)
    store = PatchStore(store_uri)
    catalogue = store.catalogue()
    splits = choose_splits(store, catalogue, split_config, config.train)
    if "val" not in splits.column("split").to_pylist():
        raise InputError(
            "val_fraction: expected validation slides in the split, to compare trials on, got none; raise val_fraction"
        )
    if config.objective_folds:
        _check_folds(sweep_folds(splits, config), store.manifest(), config)
    check_labels_kept(store, out_uri, splits, config.train)
    slide_ids = splits.column("slide_id").to_pylist()
    spec = SweepSpec(
        milcore_version=__version__,
        store_uri=store_uri,
        instance_digest=read_instances(catalogue, config.train, slide_ids, config.poolings).digest,
        splits_digest=splits_digest(splits),
        tune=config,
    )
    with lease(out_uri, "sweep"):
        claim_folder(out_uri, spec)
        run_files.publish({Sweep(out_uri).splits_uri: storage.table_bytes(splits)})
        if storage.exists(Sweep(out_uri).best_uri):
            remove_trial_folders(out_uri)
    return spec


def remove_trial_folders(out_uri: str) -> None:
    """Remove the folders of a finished sweep's trials."""
    for folder in TRIAL_FOLDERS:
        storage.remove_folder(storage.join(out_uri, folder))


def sweep_folds(splits: pa.Table, config: TuneConfig) -> pa.Table:
    """The splits with the folds that trials are scored by.

    Raises:
        InputError: a class has fewer patients than there are folds.
    """
    return add_folds(splits, SplitConfig(split_seed=config.tune_seed, folds=config.objective_folds))


def _check_folds(splits: pa.Table, manifest: Manifest, config: TuneConfig) -> None:
    """Check that a trial can be trained without each fold.

    Raises:
        InputError: they cannot.
    """
    rows = [row for row in splits.to_pylist() if row["fold"] >= 0]
    for fold in range(config.objective_folds):
        of_fold = [{**row, "split": "val" if row["fold"] == fold else "train"} for row in rows]
        COHORT_TARGETS[config.train.target].check_splits(pa.Table.from_pylist(of_fold), manifest, config.train)


def with_standard_error(result: TrialResult, splits: pa.Table) -> TrialResult:
    """Add the standard error of a trial's validation AUROC.

    One estimated from folds is kept; more than two classes, and other targets, have none.
    """
    labels = [row.get("label") for row in splits.to_pylist() if row["split"] == "val"]
    positives = sum(label == 1 for label in labels)
    if not math.isnan(result.val_metric_se) or set(labels) != {0, 1}:
        return result
    return result._replace(val_metric_se=auroc_standard_error(result.val_metric, positives, len(labels) - positives))


def sweep_verdict(results: list[TrialResult], target: Target = "classification") -> SweepVerdict:
    """Compare the best trial with the next one.

    They are separable where their AUROCs differ by more than 1.96 standard errors of the difference,
    ``sqrt(se1^2 + se2^2)``. That is conservative: the trials are validated on the same patients, and the positive
    correlation of their AUROCs makes the true standard error smaller. Of another target its metric stands for AUROC.
    """
    title = RANK_METRICS[target].title
    first, *others = sorted(
        (result for result in results if result.state == "ok"),
        key=lambda result: (Validation(result.val_loss, result.val_metric).rank, result.trial),
    )
    if not others:
        return SweepVerdict(first.trial, None, None, None, separable=True, line=f"trial {first.trial} is the only one")
    second = others[0]
    difference = first.val_metric - second.val_metric
    error = math.hypot(first.val_metric_se, second.val_metric_se)
    if math.isnan(difference) or math.isnan(error):
        line = f"trial {first.trial} ranks first; without {title} and its error nothing says whether by chance"
        return SweepVerdict(first.trial, second.trial, None, None, separable=False, line=line)
    separable = difference > SEPARABLE_AT * error
    rank = "better" if separable else "first but not separable (try more patients or --objective-folds)"
    margin = f"{title} {difference:.3f} above trial {second.trial}, standard error {error:.3f}"
    line = f"trial {first.trial} is {rank}; {margin}"
    return SweepVerdict(first.trial, second.trial, difference, error, separable, line)


def publish(out_uri: str, spec: SweepSpec, results: list[TrialResult]) -> TrainConfig:
    """Write ``trials.parquet``, ``verdict.json`` and ``best.json``; returns the best settings.

    Raises:
        ClusterError: trials are missing, or none succeeded.
    """
    _check_complete(spec.tune.trials, results)
    sweep = Sweep(out_uri)
    splits = sweep.splits()
    results = [with_standard_error(result, splits) for result in sorted(results)]
    verdict = sweep_verdict(results, spec.tune.train.target)
    best = trial_configs(spec.tune)[verdict.best]
    run_files.publish(
        {
            sweep.trials_uri: storage.table_bytes(_trials_table(results, spec.tune.train.target)),
            sweep.verdict_uri: storage.json_bytes(verdict._asdict()),
            sweep.best_uri: storage.json_bytes(best.model_dump(mode="json")),
        }
    )
    return best


def _trials_table(results: list[TrialResult], target: Target) -> pa.Table:
    """A row per trial: the columns of the schema, then one per searched setting."""
    table = pa.Table.from_pylist([result._asdict() for result in results], schema=_SCHEMA)
    table = table.rename_columns([_column(name, target) for name in table.column_names])
    for place, (name, _) in enumerate(results[0].searched):
        table = table.append_column(name, pa.array([result.searched[place][1] for result in results]))
    return table


def trial_result(row: Mapping[str, Any], target: Target) -> TrialResult:
    """Result of a trial from its row in ``trials.parquet``."""
    columns = {name: _column(name, target) for name in TrialResult._fields}
    return TrialResult(**{name: row[column] for name, column in columns.items() if column in row})


def _column(name: str, target: Target) -> str:
    """Column of a field of ``TrialResult``: ``val_auroc`` for ``val_metric`` of classes."""
    return name.replace("val_metric", metric_name(target))


def _check_complete(trials: int, results: list[TrialResult]) -> None:
    """Check that every trial has a result and at least one succeeded."""
    ended = sorted(result.trial for result in results)
    if ended != list(range(trials)):
        missing = sorted(set(range(trials)) - set(ended))
        raise ClusterError(f"{len(missing)} of {trials} trials have no result ({missing}); run the same sweep again")
    if not any(result.state == "ok" for result in results):
        raise ClusterError(f"all {trials} trials failed; the first: {results[0].reason}")


_SCHEMA = pa.schema(
    [
        ("trial", pa.int32()),
        ("pooling", pa.string()),
        ("learning_rate", pa.float64()),
        ("epochs", pa.int32()),
        ("val_loss", pa.float64()),
        ("val_metric", pa.float64()),
        ("state", pa.string()),
        ("reason", pa.string()),
        ("val_metric_se", pa.float64()),
    ]
)
