"""A run folder: what is written before training, what training publishes, and how it is read again.

``config.json`` says what the run is; the same folder resumes the same run and refuses another. ``model.safetensors``
comes last: a run that has it is finished.
"""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.compute as pc

from milcore import __version__
from milcore.cohort.splits import add_folds, check_splits, make_splits, splits_digest, splits_of_fold
from milcore.config import RunSpec, SplitConfig, TrainConfig
from milcore.errors import InputError, StoreError, UnreachableError
from milcore.mil.bags.load import READING_THREADS, load_bags
from milcore.runtime import storage
from milcore.runtime.malloc import keep_freed_memory
from milcore.store.store import PatchStore
from milcore.training.context import TrainContext
from milcore.training.history import history_table
from milcore.training.loop import fit
from milcore.training.model_file import model_bytes
from milcore.training.run_folder import Run, claim_folder


def prepare_run(store_uri: str, run_uri: str, config: TrainConfig, split_config: SplitConfig) -> RunSpec:
    """Write what the run is: ``splits.parquet`` and ``config.json``, with folds in each of their folders too.

    Args:
        store_uri: patch store to train on.
        run_uri: the run folder; one that already holds this very run is taken up again.
        config: the model and its training.
        split_config: how to split the store's patients, or the splits.parquet to take over, so that nothing tuned on
            is ever tested on.

    Raises:
        InputError: the folder holds another run, or the split cannot be trained on.
        StoreError: slides lack what is to be trained on.
    """
    store, run = PatchStore(storage.absolute(store_uri)), Run(run_uri)
    splits = choose_splits(store, split_config)
    if not split_config.folds:
        return _claim_run(store, run, config, splits, folds=0)
    splits = add_folds(splits, split_config)
    spec = _claim_run(store, run, config, splits, split_config.folds)
    for fold in range(spec.folds):
        _claim_run(store, run.fold(fold), config, splits_of_fold(splits, fold, split_config), folds=0)
    return spec


def _claim_run(store: PatchStore, run: Run, config: TrainConfig, splits: pa.Table, folds: int) -> RunSpec:
    spec = RunSpec(
        milcore_version=__version__,
        store_uri=store.uri,
        classes=store.manifest().classes,
        instance_digest=instance_digest(store, config, splits.column("slide_id").to_pylist()),
        splits_digest=splits_digest(splits),
        train=config,
        folds=folds,
    )
    claim_folder(run.uri, spec.model_dump(mode="json"))
    storage.write_table(run.splits_uri, splits)
    return spec


def choose_splits(store: PatchStore, config: SplitConfig) -> pa.Table:
    """The split of the store's usable slides: drawn from the whole manifest, or taken over from a file.

    Raises:
        InputError: the store has one class, the file lacks slides, or the training part lacks a class.
        StoreError: slides of the manifest are neither ok nor quarantined.
    """
    manifest = store.manifest()
    if len(manifest.classes) < 2:
        raise InputError(
            f"the manifest has one class ({', '.join(manifest.classes)}); allowed: at least 2; add slides of another"
        )
    splits = make_splits(manifest, config) if config.splits is None else storage.read_table(config.splits)
    check_splits(splits)
    records = store.records()
    unfinished = [slide_id for slide_id, record in records.items() if record is None]
    if unfinished:
        raise StoreError(
            f"{len(unfinished)} of {len(records)} slides of {store.uri} are neither ok nor quarantined "
            f"({', '.join(unfinished[:5])} …); run `milcore ingest` or `milcore import` again"
        )
    usable = [slide_id for slide_id, record in records.items() if record and record.status == "ok"]
    if config.splits is not None and "fold" in splits.column_names:
        splits = splits.drop_columns(["fold"])
    absent = sorted(set(usable) - set(splits.column("slide_id").to_pylist()))
    if absent:
        raise InputError(
            f"{config.splits} lacks {len(absent)} slides of the store ({', '.join(absent[:5])} …); make it anew"
        )
    splits = splits.filter(pc.is_in(splits.column("slide_id"), pa.array(usable, pa.string())))
    labels = {row["label"] for row in splits.to_pylist() if row["split"] == "train"}
    lacking = [name for label, name in enumerate(manifest.classes) if label not in labels]
    if lacking:
        raise InputError(
            f"the training split holds no slide of class {', '.join(lacking)}; allowed: all {len(manifest.classes)} "
            "classes; ingest more slides or change split_seed or the fractions"
        )
    return splits


def instance_digest(store: PatchStore, config: TrainConfig, slide_ids: list[str]) -> str:
    """Sha256 over the digests of what each slide is trained from.

    Raises:
        StoreError: slides lack these features, or patches.
    """

    def digest(slide_id: str) -> str | None:
        slide = store.slide(slide_id)
        if config.features is None:
            return slide.patches_digest
        return str(slide.feature_attrs(config.features)["digest"]) if slide.has_features(config.features) else None

    with ThreadPoolExecutor(READING_THREADS) as pool:
        digests = dict(zip(slide_ids, pool.map(digest, slide_ids), strict=True))
    lacking = sorted(slide_id for slide_id, its in digests.items() if its is None)
    if lacking and config.features is None:
        raise StoreError(
            f"{len(lacking)} of {len(slide_ids)} slides were imported without patches ({', '.join(lacking[:5])} …); "
            "train on their features by --features"
        )
    if lacking:
        raise StoreError(
            f"{len(lacking)} of {len(slide_ids)} slides have no features/{config.features} "
            f"({', '.join(lacking[:5])} …); "
            "run milcore encode or name others by --features"
        )
    return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()


def train_run(run_uri: str, ctx: TrainContext) -> None:
    """Train a prepared run and publish model and history; a finished run is left as it is.

    Raises:
        UnreachableError: the folder cannot be written to, by rank 0.
    """
    run = Run(run_uri)
    if run.is_finished():
        return
    keep_freed_memory()
    spec = run.spec()
    result = fit(spec.train, load_bags(spec.store_uri, spec.train, run.splits()), ctx)
    if ctx.rank == 0:
        try:
            storage.write_table(run.history_uri, history_table(result.history))
            storage.write_bytes(run.model_uri, model_bytes(result.model, result.best_epoch))
        except storage.IO_ERRORS as error:
            raise UnreachableError(
                f"{run_uri} cannot be written to ({error}); make room or wait, then run the same command again: it "
                "goes on from the last checkpoint"
            ) from error
