"""A training run: prepare its folder, train it, publish model and history.

``config.json`` identifies the run; the same folder resumes the same run and refuses another. ``model.safetensors`` is
written last: a run that has it is finished.
"""

import posixpath
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from milcore import __version__
from milcore.cohort.label_changes import changes_text, classes_of
from milcore.cohort.splits import add_folds, make_splits, splits_digest, splits_of_fold
from milcore.cohort.splits_file import read_splits
from milcore.cohort.targets import COHORT_TARGETS
from milcore.config import RunSpec, SplitConfig, TargetConfig, TrainConfig
from milcore.errors import InputError, StoreError, UnreachableError
from milcore.runtime import storage
from milcore.runtime.lease import lease
from milcore.runtime.malloc import keep_freed_memory
from milcore.store.catalogue import Catalogue
from milcore.store.store import PatchStore
from milcore.training.instances import read_instances
from milcore.training.run_files import publish, read_json
from milcore.training.run_folder import Run, check_no_other_files, claim_folder

if TYPE_CHECKING:
    from milcore.training.context import TrainContext

# ruff: noqa: PLC0415 - torch takes seconds and memory, and a step that has a job train does not need it


def prepare_run(store_uri: str, run_uri: str, config: TrainConfig, split_config: SplitConfig) -> RunSpec:
    """Write ``config.json`` and ``splits.parquet`` of a run and of each of its folds.

    Args:
        store_uri: patch store to train on.
        run_uri: the run folder; one that holds the same run is resumed.
        config: the model and its training.
        split_config: fractions and seed of the split, or the splits.parquet to adopt, so that no slide tuned on is
            tested on.

    Raises:
        InputError: the folder holds another run or other files, or the split cannot be trained on.
        StoreError: slides lack what is to be trained on.
        BusyError: another process prepares the run, or trains it on Ray.
    """
    store, run = PatchStore(storage.absolute(store_uri)), Run(run_uri)
    check_no_other_files(run.uri, [posixpath.basename(run.checkpoints_uri)])
    catalogue = store.catalogue()
    splits = choose_splits(store, catalogue, split_config, config)
    of_folds: list[pa.Table] = []
    if split_config.has_folds:
        splits = add_folds(splits, split_config)
        of_folds = [splits_of_fold(splits, fold, split_config) for fold in range(1 + max(splits["fold"].to_pylist()))]
        manifest = store.manifest()
        for of_fold in of_folds:
            COHORT_TARGETS[config.target].check_splits(of_fold, manifest, config)
    check_labels_kept(store, run_uri, splits, config)
    with lease(run_uri, "run"):
        spec = _claim_run(run, _spec(store, catalogue, config, splits, len(of_folds)), splits)
        for fold, of_fold in enumerate(of_folds):
            _claim_run(run.fold(fold), _spec(store, catalogue, config, of_fold, 0), of_fold)
    return spec


def _spec(store: PatchStore, catalogue: Catalogue, config: TrainConfig, splits: pa.Table, folds: int) -> RunSpec:
    instances = read_instances(catalogue, config, splits.column("slide_id").to_pylist())
    return RunSpec(
        milcore_version=__version__,
        store_uri=store.uri,
        classes=store.manifest().classes if config.target == "classification" else (),
        instance_digest=instances.digest,
        splits_digest=splits_digest(splits),
        train=config,
        folds=folds,
        origin=instances.origin,
    )


def _claim_run(run: Run, spec: RunSpec, splits: pa.Table) -> RunSpec:
    claim_folder(run.uri, spec)
    publish({run.splits_uri: storage.table_bytes(splits)})
    return spec


def choose_splits(store: PatchStore, catalogue: Catalogue, config: SplitConfig, train: TrainConfig) -> pa.Table:
    """Split the usable slides of a store.

    The split is drawn from the whole manifest, or adopted from a file.

    Args:
        store: of the slides.
        catalogue: of the store.
        config: fractions and seed, or the file.
        train: target and bags of the model.

    Raises:
        InputError: the manifest or its split cannot be trained on, as their target says, or the file is no split of the
            store's slides.
        StoreError: slides of the manifest are neither ok nor quarantined.
    """
    manifest, target = store.manifest(), COHORT_TARGETS[train.target]
    target.check_manifest(manifest, train)
    if config.splits is None:
        splits = make_splits(manifest, config, train)
    else:
        splits = read_splits(config.splits, manifest, train, config.unit)
    usable = _usable_slides(catalogue)
    if config.splits is not None:
        wanted = set(usable) & set(target.table(manifest, train)["slide_id"].to_pylist())
        _check_complete(splits, wanted, config.splits)
    splits = splits.filter(pc.is_in(splits.column("slide_id"), pa.array(usable, pa.string())))
    target.check_splits(splits, manifest, train)
    return splits


def _check_complete(splits: pa.Table, wanted: set[str], uri: str) -> None:
    """Check that splits of a file have every slide that can be trained on.

    Raises:
        InputError: it lacks some.
    """
    absent = sorted(wanted - set(splits.column("slide_id").to_pylist()))
    if absent:
        raise InputError(
            f"splits: expected every slide of the store in {uri}, got none of {len(absent)} "
            f"({', '.join(absent[:5])} …); make the file anew"
        )


def check_labels_kept(store: PatchStore, folder_uri: str, splits: pa.Table, target: TargetConfig) -> None:
    """Check that a folder was made with the manifest's labels or follow-up.

    A folder of other splits for another reason is left to ``claim_folder``.

    Args:
        store: of the run or sweep.
        folder_uri: of it; empty before it is begun.
        splits: now.
        target: of the models.

    Raises:
        InputError: labels, follow-up, classes or patients that differ.
    """
    folder = Run(folder_uri)
    if not storage.exists(folder.config_uri) or not storage.exists(folder.splits_uri):
        return
    claim, manifest = read_json(folder.config_uri), store.manifest()
    is_of_store = storage.resolve(str(claim.get("store_uri")), folder_uri) == store.uri
    if not is_of_store or claim.get("splits_digest") == splits_digest(splits):
        return
    before = folder.splits()
    classes = classes_of(before, claim.get("classes", manifest.classes))
    of_cohort = COHORT_TARGETS[target.target]
    changes = of_cohort.changes(before.to_pylist(), classes, manifest, target)
    if changes:
        raise InputError(
            f"{folder_uri}: expected the {of_cohort.title} that it was made with, got others in the manifest of "
            f"{store.uri} ({changes_text(changes)}); allowed: the same; take another folder, or ingest with the former "
            "manifest"
        )


def _usable_slides(catalogue: Catalogue) -> list[str]:
    """Ids of the slides that are ok, in manifest order.

    Raises:
        StoreError: slides are neither ok nor quarantined.
    """
    records = catalogue.records
    unfinished = [slide_id for slide_id, record in records.items() if record is None]
    if unfinished:
        raise StoreError(
            f"{len(unfinished)} of {len(records)} slides in the manifest of {catalogue.store_uri} are neither ok nor "
            f"quarantined ({', '.join(unfinished[:5])} …); run `milcore ingest` or `milcore import` again"
        )
    return [slide_id for slide_id, record in records.items() if record and record.status == "ok"]


def train_run(run_uri: str, ctx: "TrainContext") -> None:
    """Train a prepared run and publish model and history.

    A finished run is left unchanged.

    Raises:
        UnreachableError: rank 0 cannot write to the folder.
    """
    from milcore.mil.bags.load import load_bags
    from milcore.mil.memory import memory_line, with_memory
    from milcore.training.history import history_table
    from milcore.training.loop import train_model
    from milcore.training.model_file import model_bytes

    run = Run(run_uri)
    if run.is_finished():
        return
    keep_freed_memory()
    spec = run.spec()
    ctx.log(memory_line(spec.train, ctx.workers_here))
    config = with_memory(spec.train, ctx.workers_here)
    result = train_model(config, load_bags(spec.store_uri, config, run.splits()), ctx)
    if ctx.rank == 0:
        try:
            history, model = history_table(result.history), model_bytes(result.model, result.best_epoch, config.target)
            publish({run.history_uri: storage.table_bytes(history), run.model_uri: model})
        except storage.IO_ERRORS as error:
            raise UnreachableError(
                f"{run_uri} cannot be written to ({error}); make room or wait, then run the same command again: it "
                "goes on from the last checkpoint"
            ) from error
