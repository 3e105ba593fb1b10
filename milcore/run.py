"""A run folder: what is written before training, what training publishes, and how it is read again.

``config.json`` says what the run is; the same folder resumes the same run and refuses another. ``model.safetensors``
comes last: a run that has it is finished.
"""

import functools
import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import torch
from safetensors.torch import load, save

from milcore import __version__
from milcore.checkpoints import HistoryRow
from milcore.cohort.splits import add_folds, check_splits, make_splits, splits_digest, splits_of_fold
from milcore.config import C, RunSpec, SplitConfig, TrainConfig, parse_config
from milcore.errors import InputError, StoreError, UnreachableError
from milcore.mil.bags.bags import BagEntry, Bags
from milcore.mil.bags.rows import BlockRows, ChainedRows, Rows
from milcore.mil.instance_encoders.finetune import check_patches
from milcore.mil.model import MILModel, make_model
from milcore.runtime import storage
from milcore.runtime.malloc import keep_freed_memory
from milcore.store.slide_group import Features, SlideGroup
from milcore.store.store import PatchStore
from milcore.train import TrainContext, fit

CONFIG = "config.json"
SPLITS = "splits.parquet"
MODEL = "model.safetensors"
HISTORY = "history.parquet"
CHECKPOINTS = "checkpoints"
FOLDS = "folds"
OUT_OF_FOLD = "out_of_fold.json"
READING_THREADS = 16
PATCHES_PER_READ = 256


def prepare_run(
    store_uri: str, run_uri: str, config: TrainConfig, split_config: SplitConfig, splits_uri: str | None
) -> RunSpec:
    """Write what the run is: ``splits.parquet`` and ``config.json``, with folds in each of their folders too.

    Args:
        store_uri: patch store to train on.
        run_uri: the run folder; one that already holds this very run is taken up again.
        config: the model and its training.
        split_config: how to split the store's patients; not read when ``splits_uri`` is given.
        splits_uri: a splits.parquet to take over, so that nothing tuned on is ever tested on.

    Raises:
        InputError: the folder holds another run, or the split cannot be trained on.
        StoreError: slides lack what is to be trained on.
    """
    store = PatchStore(storage.absolute(store_uri))
    splits = choose_splits(store, split_config, splits_uri)
    if not split_config.folds:
        return _claim_run(store, run_uri, config, splits, folds=0)
    splits = add_folds(splits, split_config)
    spec = _claim_run(store, run_uri, config, splits, split_config.folds)
    for fold in range(spec.folds):
        _claim_run(store, fold_folder(run_uri, fold), config, splits_of_fold(splits, fold, split_config), folds=0)
    return spec


def _claim_run(store: PatchStore, run_uri: str, config: TrainConfig, splits: pa.Table, folds: int) -> RunSpec:
    spec = RunSpec(
        milcore_version=__version__,
        store_uri=store.uri,
        classes=store.manifest().classes,
        instance_digest=instance_digest(store, config, splits.column("slide_id").to_pylist()),
        splits_digest=splits_digest(splits),
        train=config,
        folds=folds,
    )
    claim_folder(run_uri, spec.model_dump(mode="json"))
    storage.write_table(storage.join(run_uri, SPLITS), splits)
    return spec


def fold_folder(run_uri: str, fold: int) -> str:
    """The folder of a fold: a run of its own."""
    return storage.join(run_uri, FOLDS, str(fold))


def claim_folder(uri: str, spec: dict[str, object]) -> None:
    """Write ``config.json`` into a new folder, or check that the folder was made for the same one.

    Raises:
        InputError: it was made for another; every setting that differs is named.
    """
    config_uri = storage.join(uri, CONFIG)
    if not storage.exists(config_uri):
        storage.write_json(config_uri, spec)
        return
    before, now = _flat(storage.read_json(config_uri)), _flat(json.loads(json.dumps(spec)))
    changed = [
        f"{key} was {before.get(key)!r}, now {now.get(key)!r}"
        for key in sorted(before | now)
        if before.get(key) != now.get(key)
    ]
    if changed:
        raise InputError(f"{uri} holds another run ({'; '.join(changed)}); take another folder or the same settings")


def choose_splits(store: PatchStore, split_config: SplitConfig, splits_uri: str | None) -> pa.Table:
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
    splits = make_splits(manifest, split_config) if splits_uri is None else storage.read_table(splits_uri)
    check_splits(splits)
    statuses = store.statuses()
    unfinished = [slide_id for slide_id, status in statuses.items() if status is None]
    if unfinished:
        raise StoreError(
            f"{len(unfinished)} of {len(statuses)} slides of {store.uri} are neither ok nor quarantined "
            f"({', '.join(unfinished[:5])} …); run `milcore ingest` or `milcore import` again"
        )
    usable = [slide_id for slide_id, status in statuses.items() if status and status.state == "ok"]
    if splits_uri is not None and "fold" in splits.column_names:
        splits = splits.drop_columns(["fold"])
    absent = sorted(set(usable) - set(splits.column("slide_id").to_pylist()))
    if absent:
        raise InputError(
            f"{splits_uri} lacks {len(absent)} slides of the store ({', '.join(absent[:5])} …); make it anew"
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


def read_spec(run_uri: str) -> RunSpec:
    """What the run is.

    Raises:
        InputError: no run folder stands there.
    """
    return read_claim(RunSpec, run_uri, "run", "train")


def read_claim(kind: type[C], uri: str, what: str, command: str) -> C:
    """The ``config.json`` that ``claim_folder`` wrote.

    Args:
        kind: its class.
        uri: the folder.
        what: what the folder is called in an error.
        command: the ``milcore`` command that makes such a folder.

    Raises:
        InputError: nobody claimed the folder.
    """
    try:
        values = storage.read_json(storage.join(uri, CONFIG))
    except FileNotFoundError:
        raise InputError(f"no {what} at {uri} ({CONFIG} is missing); run milcore {command} first") from None
    return parse_config(kind, values)


def read_splits(run_uri: str) -> pa.Table:
    """The split of the run."""
    return storage.read_table(storage.join(run_uri, SPLITS))


def load_bags(store_uri: str, config: TrainConfig, splits: pa.Table) -> Bags:
    """The bags of a split table, in its order, read from the store when asked for.

    A bag is a slide or, by the config, a patient: their slides one after another, under the highest of their labels.
    """
    store = PatchStore(store_uri)
    rows = splits.to_pylist()
    with ThreadPoolExecutor(READING_THREADS) as pool:
        slides = list(pool.map(lambda row: store.slide(row["slide_id"]), rows))
    groups = {slide.slide_id: slide for slide in slides}
    of_bag: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        of_bag.setdefault(row["patient_id"] if config.bag == "patient" else row["slide_id"], []).append(row)
    entries = [
        BagEntry(
            bag_id,
            its[0]["patient_id"],
            max(row["label"] for row in its),
            its[0]["split"],
            tuple(row["slide_id"] for row in its),
            tuple(len(groups[row["slide_id"]]) for row in its),
        )
        for bag_id, its in of_bag.items()
    ]
    features = functools.cache(lambda slide_id: groups[slide_id].features(str(config.features)))

    def open_rows(entry: BagEntry) -> Rows:
        if config.features is None:
            return ChainedRows([instance_rows(groups[slide_id], config) for slide_id in entry.slides])
        return ChainedRows([_feature_rows(features(slide_id)) for slide_id in entry.slides])

    return Bags(entries, open_rows, cache_bytes(config))


def instance_rows(slide: SlideGroup, config: TrainConfig) -> Rows:
    """What the model sees of a slide: features (instance, feature), or patches (instance, height, width, 3) u1."""
    if config.features is not None:
        return _feature_rows(slide.features(config.features))
    check_patches(config.encoder, slide)
    return _patch_rows(slide)


def _patch_rows(slide: SlideGroup) -> Rows:
    return BlockRows(lambda start, stop: torch.from_numpy(slide.patches(start, stop)), len(slide), PATCHES_PER_READ)


def _feature_rows(features: Features) -> Rows:
    return BlockRows(
        lambda start, stop: torch.from_numpy(features.read(start, stop)), features.shape[0], features.rows_per_chunk
    )


def cache_bytes(config: TrainConfig) -> int:
    """Memory for the instances one worker keeps."""
    return int(config.cache_mb * 1e6)


def train_run(run_uri: str, ctx: TrainContext) -> None:
    """Train a prepared run and publish model and history; a finished run is left as it is.

    Raises:
        UnreachableError: the folder cannot be written to, by rank 0.
    """
    if is_finished(run_uri):
        return
    keep_freed_memory()
    spec = read_spec(run_uri)
    result = fit(spec.train, load_bags(spec.store_uri, spec.train, read_splits(run_uri)), ctx)
    if ctx.rank == 0:
        try:
            storage.write_table(storage.join(run_uri, HISTORY), history_table(result.history))
            storage.write_bytes(storage.join(run_uri, MODEL), _weights(result.model, result.best_epoch))
        except storage.IO_ERRORS as error:
            raise UnreachableError(
                f"{run_uri} cannot be written to ({error}); make room or wait, then run the same command again: it "
                "goes on from the last checkpoint"
            ) from error


def is_finished(run_uri: str) -> bool:
    """Whether the run has published its model, or the models of all its folds."""
    return any(storage.exists(storage.join(run_uri, name)) for name in (MODEL, OUT_OF_FOLD))


def history_table(history: list[HistoryRow]) -> pa.Table:
    """Columns fold (0), epoch, split, metric, value."""
    return pa.table(
        {
            "fold": pa.array([0] * len(history), pa.int32()),
            "epoch": pa.array([row.epoch for row in history], pa.int32()),
            "split": pa.array([row.split for row in history], pa.string()),
            "metric": pa.array([row.metric for row in history], pa.string()),
            "value": pa.array([row.value for row in history], pa.float64()),
        }
    )


def load_models(run_uri: str) -> tuple[RunSpec, tuple[MILModel, ...]]:
    """The published models of a run, on the CPU and in evaluation mode: one, or one per fold.

    Raises:
        InputError: the run, or one of its folds, is not finished.
    """
    spec = read_spec(run_uri)
    uris = [storage.join(folder, MODEL) for folder in model_folders(run_uri, spec.folds)]
    for uri in uris:
        if not storage.exists(uri):
            raise InputError(f"the run at {run_uri} is not finished ({uri} is missing); run milcore train again")
    return spec, tuple(_load_model(uri, spec.train) for uri in uris)


def model_folders(run_uri: str, folds: int) -> list[str]:
    """Where a run keeps its models and their histories: the run folder itself, or ``folds/<k>`` in it."""
    return [storage.join(run_uri, FOLDS, str(fold)) for fold in range(folds)] or [run_uri]


def _load_model(uri: str, config: TrainConfig) -> MILModel:
    weights = load(storage.read_bytes(uri))
    width = len(weights["encoder.mean"]) if "encoder.mean" in weights else 0
    logits = len(weights["classifier.bias"])
    model = make_model(config, width, classes=2 if logits == 1 else logits)
    model.load_state_dict(weights)
    return model.eval()


def _weights(model: MILModel, best_epoch: int) -> bytes:
    tensors = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    data: bytes = save(tensors, metadata={"milcore_version": __version__, "best_epoch": str(best_epoch)})
    return data


def _flat(values: dict[str, object], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
