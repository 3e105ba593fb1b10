"""The run folder: paths of its files, its ``config.json``, and reading what was published.

``config.json`` identifies the run: the same settings resume it, others are refused.
"""

import os
import posixpath
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import pyarrow as pa

from milcore.cohort.splits import check_splits
from milcore.config import (
    FOLDER_SCHEMA_VERSION,
    FolderSpec,
    RunSpec,
    check_program,
    parse_config,
    upgrade_train,
    without_unread,
)
from milcore.errors import DamageError, InputError
from milcore.runtime import html, storage
from milcore.runtime.allow_list import check_uri
from milcore.runtime.digest import digest, unique_digest
from milcore.store.store import PatchStore
from milcore.training import run_files

if TYPE_CHECKING:
    from milcore.mil.model import MILModel
    from milcore.training.out_of_fold import OutOfFold

F = TypeVar("F", bound=FolderSpec)
# keys of ``config.json`` that may differ when a folder is used again
NO_SETTINGS = re.compile(
    r"schema_version|milcore_version|store_uri|run|origin|origin\.(ingestion|imports|encoder|encoder_id|encoder\.encoder)"
)
# those of the machine, which is another where a run goes on elsewhere: what was given last counts
MEMORY_SETTINGS = re.compile(r"(tune\.)?train\.(activation_mb|cache_mb|disk_cache_mb)")


@dataclass(frozen=True)
class Run:
    """A run folder, of one model or of folds.

    Args:
        uri: the folder.
    """

    uri: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "uri", storage.absolute(os.fspath(self.uri)))

    @property
    def store(self) -> PatchStore:
        """The patch store that it was trained on."""
        return PatchStore(self.spec().store_uri)

    @property
    def config_uri(self) -> str:
        """``config.json``: store, instances, splits and training settings."""
        return config_uri(self.uri)

    @property
    def splits_uri(self) -> str:
        """``splits.parquet``: label and split of every slide."""
        return storage.join(self.uri, "splits.parquet")

    @property
    def checkpoints_uri(self) -> str:
        """Folder of checkpoints, one folder per epoch."""
        return storage.join(self.uri, "checkpoints")

    @property
    def tensorboard_uri(self) -> str:
        """Folder of TensorBoard event files."""
        return storage.join(self.uri, "tensorboard")

    @property
    def history_uri(self) -> str:
        """``history.parquet``: fold, epoch, split, metric, value."""
        return storage.join(self.uri, "history.parquet")

    @property
    def model_uri(self) -> str:
        """``model.safetensors``: the weights, written last in training."""
        return storage.join(self.uri, "model.safetensors")

    @property
    def out_of_fold_uri(self) -> str:
        """``out_of_fold.json``: metrics of a run of folds, written last in training."""
        return storage.join(self.uri, "out_of_fold.json")

    @property
    def predictions_uri(self) -> str:
        """``predictions.parquet``: probabilities of every bag."""
        return storage.join(self.uri, "predictions.parquet")

    @property
    def metrics_uri(self) -> str:
        """``metrics.json``: metrics of the test split."""
        return storage.join(self.uri, "metrics.json")

    @property
    def attention_uri(self) -> str:
        """Folder with the attention of each test slide."""
        return storage.join(self.uri, "attention")

    @property
    def attention_index_uri(self) -> str:
        """``attention/index.json``: a row per test slide."""
        return storage.join(self.attention_uri, "index.json")

    @property
    def report_uri(self) -> str:
        """``report.html``: the evaluation as one page."""
        return storage.join(self.uri, "report.html")

    @property
    def model_card_uri(self) -> str:
        """``MODEL_CARD.md``."""
        return storage.join(self.uri, "MODEL_CARD.md")

    @property
    def sweep_uri(self) -> str:
        """Folder of the sweep that chooses a pipeline run's settings."""
        return storage.join(self.uri, "tune")

    @property
    def status_uri(self) -> str:
        """``status.json``: how the steps of a pipeline run ended."""
        return storage.join(self.uri, "status.json")

    def fold(self, fold: int) -> "Run":
        """The run of one fold, in ``folds/<fold>``."""
        return Run(storage.join(self.uri, "folds", str(fold)))

    def members(self, folds: int) -> list["Run"]:
        """The run of each model: every fold, or this run where there are none."""
        return [self.fold(fold) for fold in range(folds)] or [self]

    def spec(self) -> RunSpec:
        """The content of ``config.json``.

        Raises:
            InputError: the folder holds no run.
        """
        spec = read_claim(RunSpec, self.uri, "run", "train")
        check_uri(spec.store_uri, f"store_uri of {config_uri(self.uri)}")
        return spec

    def splits(self) -> pa.Table:
        """Columns slide_id, patient_id, label, split; also fold in a run of folds."""
        return read_splits(self.splits_uri)

    def predictions(self) -> pa.Table:
        """Probabilities of every bag; of a fold, of the bags it left out."""
        return run_files.read_table(self.predictions_uri)

    def history(self) -> pa.Table:
        """Columns fold, epoch, split, metric, value."""
        return run_files.read_table(self.history_uri)

    def is_finished(self) -> bool:
        """True where the model, or the models of all folds, are published."""
        return any(storage.exists(uri) for uri in (self.model_uri, self.out_of_fold_uri))

    def models(
        self, *, allow_program: bool = False, workers_here: int = 1, spec: RunSpec | None = None
    ) -> tuple["MILModel", ...]:
        """The published models on the CPU, in evaluation mode: one, or one per fold.

        Args:
            allow_program: load an encoder that is a program (TorchScript) too.
            workers_here: processes that share the memory of this machine, each with the models.
            spec: of this run; None: it is read.

        Raises:
            InputError: the run, or one of its folds, is not finished, or its encoder is a program.
        """
        from milcore.mil.memory import with_memory  # noqa: PLC0415 - torch is imported only for weights
        from milcore.training.model_file import load_model  # noqa: PLC0415

        spec = self.spec() if spec is None else spec
        check_program(spec.train.encoder, allow_program=allow_program)
        uris = [member.model_uri for member in self.members(spec.folds)]
        for uri in uris:
            if not storage.exists(uri):
                raise InputError(f"the run at {self.uri} is not finished ({uri} is missing); run milcore train again")
        config = with_memory(spec.train, workers_here)
        return tuple(load_model(uri, config) for uri in uris)

    def out_of_fold(self) -> "OutOfFold | None":
        """Metrics of the slides that the folds of a finished run left out.

        None of one model.
        """
        from milcore.training.out_of_fold import OutOfFold  # noqa: PLC0415 - scikit-learn, for folds only

        spec = self.spec()
        return OutOfFold.from_json(run_files.read_json(self.out_of_fold_uri), spec.train.target) if spec.folds else None

    def _repr_html_(self) -> str:
        """Its settings, for a notebook."""
        spec = self.spec()
        kind = f"{spec.folds} folds" if spec.folds else "one model"
        state = "finished" if self.is_finished() else "not finished"
        of_folds = self.out_of_fold() if self.is_finished() else None
        text = f"{self.uri}: {kind}, {state}" + ("" if of_folds is None else f"; {of_folds.line}")
        return html.line(text) + html.table(["setting", "value"], spec.train.model_dump().items())

    def state(self) -> str:
        """Digest of the published files and of the annotations that evaluation reads.

        A new one while any is missing.
        """
        uris = (
            self.config_uri, self.splits_uri, self.model_uri, self.metrics_uri, self.predictions_uri, self.report_uri,
        )  # fmt: skip
        try:
            stats = {posixpath.basename(uri): storage.stat(uri) for uri in uris}
            annotations = PatchStore(self.spec().store_uri).annotation_record().to_json()
        except (FileNotFoundError, DamageError):
            return unique_digest()
        return digest({"files": stats, "annotations": annotations})


def read_metrics(run: Run) -> dict[str, Any] | None:
    """The content of a run's ``metrics.json``; None before it is evaluated.

    Raises:
        AbsentFileError: it was written, and is lost.
    """
    try:
        return dict(run_files.read_json(run.metrics_uri))
    except FileNotFoundError:
        if posixpath.basename(run.metrics_uri) in run_files.recorded_digests(run.uri):
            raise
        return None


def run_damage(run: Run) -> list[str]:
    """Lines on the damaged files of a run, its attention and its folds."""
    lines = run_files.damage_of(run.uri) + run_files.damage_of(run.attention_uri)
    try:
        members = run.members(run.spec().folds)
    except DamageError:
        return lines
    return lines + [line for member in members if member != run for line in run_files.damage_of(member.uri)]


def read_splits(uri: str) -> pa.Table:
    """The ``splits.parquet`` of a run or a sweep, which others may have written.

    Raises:
        InputError: as ``check_splits``.
    """
    splits = run_files.read_table(uri)
    check_splits(splits)
    return splits


def config_uri(folder_uri: str) -> str:
    """The ``config.json`` of a run, a sweep or a folder of predictions."""
    return storage.join(folder_uri, "config.json")


def claim_folder(uri: str, spec: FolderSpec) -> None:
    """Write ``config.json`` into a new folder, or check that it holds the same.

    One of an earlier schema gains what it lacks, and one whose store or run lies elsewhere now its new place: digests
    tell them. Memory settings that are given, and the encoder_id that its imported features have now, replace those it
    holds. Of two claims at once with different settings one is refused.

    Raises:
        InputError: it holds another; every setting that differs is named.
    """
    now, stored = spec.model_dump(mode="json"), _stored(spec, uri)
    if storage.create(config_uri(uri), storage.json_bytes(stored)):
        run_files.record({config_uri(uri): storage.json_bytes(stored)})
    earlier = _parse(type(spec), uri, run_files.read_json(config_uri(uri)))
    before = earlier.model_dump(mode="json")
    is_older = earlier.schema_version < spec.schema_version
    lacking = {name for name, value in before.items() if is_older and value is None}
    changed = _changed_settings(before, {name: value for name, value in now.items() if name not in lacking})
    if changed:
        raise InputError(
            f"{uri}: expected the settings that it was made with, got others ({'; '.join(changed)}); take another "
            "folder or the same settings"
        )
    is_elsewhere = any(before[name] != now[name] for name in spec.folders)
    if is_older or is_elsewhere or _has_other_memory(before, now) or _has_other_encoder_id(before, now):
        run_files.forget(config_uri(uri))
        stored = _with_given_memory(stored, before) | {"milcore_version": earlier.milcore_version}
        storage.write_json(config_uri(uri), stored)
    # last: a claim that ended before leaves a file that is not recorded, which a later one reads
    run_files.record({config_uri(uri): storage.read_bytes(config_uri(uri))})


def _stored(spec: FolderSpec, uri: str) -> dict[str, object]:
    """Content of ``config.json``: local folders as paths from this one."""
    return spec.with_folders(lambda folder: storage.relative(folder, uri)).model_dump(mode="json")


def check_no_other_files(uri: str, folders: Sequence[str]) -> None:
    """Check that a new folder lacks those that a run fills and removes.

    Raises:
        InputError: it has one: its files are another program's, and would be removed.
    """
    if storage.exists(config_uri(uri)):
        return
    taken = [name for name in folders if storage.names(storage.join(uri, name))]
    if taken:
        raise InputError(
            f"{uri}: expected a new folder, or one of milcore (config.json), got one with {', '.join(taken)}, where "
            "files would be removed; allowed: any other folder; take another"
        )


def _changed_settings(before: dict[str, object], now: dict[str, object]) -> list[str]:
    """Every setting of a folder that differs, with both values.

    Instances are compared by digest, so that only the encoder of their origin counts.
    """
    before, now = _flatten(before), _flatten(now)
    return [
        f"{key} was {before.get(key)!r}, now {now.get(key)!r}"
        for key in sorted(before | now)
        if before.get(key) != now.get(key) and not NO_SETTINGS.fullmatch(key) and not MEMORY_SETTINGS.fullmatch(key)
    ]


def _with_given_memory(now: dict[str, object], before: dict[str, object]) -> dict[str, object]:
    """Settings as now, with memory as before where none is given now."""
    return {name: _given_memory(name, value, before.get(name)) for name, value in now.items()}


def _given_memory(name: str, now: object, before: object) -> object:
    if isinstance(now, dict) and isinstance(before, dict):
        return _with_given_memory(now, before)
    return before if now is None and name in {"activation_mb", "cache_mb", "disk_cache_mb"} else now


def _has_other_memory(before: dict[str, object], now: dict[str, object]) -> bool:
    """True where memory settings are given now, and differ."""
    earlier = _flatten(before)
    return any(
        MEMORY_SETTINGS.fullmatch(key) and value is not None and value != earlier.get(key)
        for key, value in _flatten(now).items()
    )


def _has_other_encoder_id(before: dict[str, object], now: dict[str, object]) -> bool:
    """True where the same features were imported again, and say now what made them."""
    ids = [_flatten(each).get("origin.encoder_id") for each in (before, now)]
    return ids[0] != ids[1]


def read_claim(kind: type[F], uri: str, noun: str, command: str) -> F:
    """Read the ``config.json`` that ``claim_folder`` wrote.

    Args:
        kind: its class.
        uri: the folder.
        noun: name of such a folder in an error.
        command: the ``milcore`` command that makes such a folder.

    Raises:
        InputError: the folder has none, or one of a newer schema.
        DamageError: it is not what was written, or its digest is lost.
    """
    try:
        values = run_files.read_json(config_uri(uri))
    except FileNotFoundError:
        raise InputError(f"no {noun} at {uri} (config.json is missing); run milcore {command} first") from None
    spec = _parse(kind, uri, values)
    if spec.schema_version > 1:
        run_files.check_recorded(config_uri(uri), command)
    return spec


def _parse(kind: type[F], uri: str, values: Any) -> F:
    """The content of a ``config.json`` of this schema or an earlier one."""
    if not isinstance(values, dict):
        raise DamageError(
            f"{config_uri(uri)}: expected a JSON object, got a {type(values).__name__}; restore it, or take another "
            "folder"
        )
    values = {"schema_version": 1} | values
    version = values["schema_version"]
    if isinstance(version, int) and version > FOLDER_SCHEMA_VERSION:
        raise InputError(
            f"{config_uri(uri)}: schema_version: expected at most {FOLDER_SCHEMA_VERSION}, got {version}; allowed: "
            f"1 to {FOLDER_SCHEMA_VERSION}; install the milcore that wrote it ({values.get('milcore_version')}), or "
            "a newer one"
        )
    if version == 1:
        values = _upgrade(values)
    return parse_config(kind, _without_unread(values)).with_folders(lambda folder: storage.resolve(folder, uri))


def _upgrade(values: dict[str, Any]) -> dict[str, Any]:
    """A ``config.json`` of the first schema, by the names of today."""
    upgraded = {name: _upgrade(value) if name == "tune" else value for name, value in values.items()}
    return upgraded | ({"train": upgrade_train(upgraded["train"])} if "train" in upgraded else {})


def _without_unread(values: dict[str, Any]) -> dict[str, Any]:
    """Content of a ``config.json`` without settings that no pooling reads.

    Earlier versions stored them.
    """
    read = {name: _without_unread(value) if name == "tune" else value for name, value in values.items()}
    train = read.get("train")
    if not isinstance(train, dict):
        return read
    return read | {"train": without_unread(train, read.get("poolings"))}


def _flatten(values: dict[str, object], prefix: str = "") -> dict[str, object]:
    """Nested settings by dotted names."""
    flat: dict[str, object] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
