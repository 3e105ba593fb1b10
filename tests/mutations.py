"""A cohort, its runs and commands that read them, and damage to one object between a command and its repetition.

The tree of objects is kept in memory and restored after each command. What holds times is left out of a comparison:
TensorBoard's files, the speed and waiting share of an epoch in histories and checkpoints, and digests over those.
"""

import contextlib
import io
import json
import os
import random
import re
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from milcore import api
from milcore.cli.info import damage, describe
from milcore.config import EncodeConfig, ImportConfig, IngestConfig, LaunchConfig, SplitConfig, TrainConfig, TuneConfig
from milcore.errors import DamageError, MILError
from milcore.slides.write_pyramid import write_pyramid
from milcore.store import catalogue
from milcore.store.store import PatchStore
from milcore.store.verify import slide_damage
from milcore.training import run_files
from milcore.training.context import LocalContext
from milcore.training.run import prepare_run, train_run
from milcore.training.run_folder import Run
from milcore.training.search_space import trial_configs
from milcore.training.sweep import TrialResult, prepare_sweep, publish
from tests.ingestion.imports.made import write_bags

PATCH_PX, SLIDES = 32, 6
SLIDE_IDS = [f"s{k}" for k in range(SLIDES)]
SPLITS = ("train", "train", "val", "val", "test", "test")
INGEST = IngestConfig(patch_size=PATCH_PX)
IMPORT = ImportConfig(format="bags-npz")
ENCODE = EncodeConfig(encoder="efficientnet_lite0,input_px=32", name="f")
TRAIN = TrainConfig(features="f", hidden=4, attention_hidden=2, epochs=2, batch_size=2, checkpoint_every=1)
PATCHES = TRAIN.model_copy(update={"features": None, "encoder": "conv", "epochs": 1})
LONGER = TRAIN.model_copy(update={"epochs": 4})
TUNE = TuneConfig(poolings=("max", "attention"), trials=2, train=TRAIN)
FOLDS = SplitConfig(folds=2)
TIMES = ("bags_per_sec", "waiting")
# what the user gives: a changed one is another input
INPUTS = re.compile(r"s\d\.tiff|manifest\.csv|bags\.npz")

CHANGES = ("delete", "truncate", "flip", "swap")
# right answer, error that names the object, line that names it beside another answer
HANDLED = ("right", "error", "told")

Tree = dict[str, tuple[bytes, int]]
Command = Callable[[Path], object]


class StopError(Exception):
    """Ends a training early."""


class StopAfter:
    """Observer that ends a training once an epoch is trained, before its checkpoint."""

    def __init__(self, epoch: int) -> None:
        self._epoch = epoch

    def show(self, epoch: int, metrics: dict[str, float]) -> None:  # noqa: ARG002 - observers are called so
        if epoch == self._epoch:
            raise StopError


def _train(folder: Path, run: str, config: TrainConfig, **settings: object) -> object:
    trained = api.train(folder / "store", folder / run, config=config, **settings)
    return trained.spec().model_dump(mode="json"), trained.out_of_fold()


def _tune(folder: Path) -> object:
    sweep = api.tune(folder / "store", folder / "sweep", config=TUNE)
    return sweep.require_best(), sweep.verdict()


def _predict(folder: Path, run: str, slides: tuple[str, ...], out: str) -> object:
    return api.predict(folder / run, [folder / f"{name}.tiff" for name in slides], folder / out).as_dict()


def _evaluate(folder: Path, run: str, sweep: str | None = None) -> object:
    of_run = None if sweep is None else folder / sweep
    forms = ("parquet", "png")
    return api.evaluate(folder / run, baselines=False, sweep=of_run, attention_formats=forms).as_dict()


def _download(folder: Path, run: str) -> object:
    out = folder / "downloads"
    api.download_model(str(folder / run), str(out / "model"))
    return api.download_evaluation(str(folder / run), str(out / "report"), str(out / "card"), str(out / "attention"))


def _partitions(folder: Path) -> object:
    store = str(folder / "store")
    counts = [api.ingest_partition(store, f"{k}/2", INGEST, LaunchConfig()) for k in range(2)]
    return _work(api.gather_ingestion(store, counts))


def _verify(uri: str, lines: list[str]) -> object:
    """As ``milcore info --verify``, but for its processes."""
    if lines:
        raise DamageError("; ".join(lines))
    return describe(uri)


def _verify_store(folder: Path) -> object:
    store = str(folder / "store")
    return _verify(store, [line for slide_id in SLIDE_IDS for line in slide_damage(store, slide_id)])


def _encode(folder: Path, name: str) -> object:
    """Slides are listed in the order in which they were encoded."""
    report = api.encode(folder / "store", config=ENCODE, name=name)
    return (report.name, sorted(report.slides), report.patches, report.types)


def _work(summary: Mapping[str, object]) -> object:
    """What ingestion or import returns, but for the number of slides that needed no work."""
    return {name: value for name, value in summary.items() if name != "skipped"}


COMMANDS: dict[str, Command] = {
    "info store": lambda folder: describe(str(folder / "store")),
    "info run": lambda folder: describe(str(folder / "run")),
    "info folds": lambda folder: describe(str(folder / "folds")),
    "verify store": _verify_store,
    "verify run": lambda folder: _verify(str(folder / "run"), damage(str(folder / "run"))),
    "verify folds": lambda folder: _verify(str(folder / "folds"), damage(str(folder / "folds"))),
    "ingest again": lambda folder: _work(
        api.ingest(folder / "manifest.csv", folder / "store", config=INGEST, workers=0).as_dict()
    ),
    "ingest partitions": _partitions,
    "import again": lambda folder: _work(
        api.import_cohort(folder / "bags.npz", folder / "imported", config=IMPORT).as_dict()
    ),
    "encode again": lambda folder: _encode(folder, "f"),
    "encode anew": lambda folder: _encode(folder, "g"),
    "train features": lambda folder: _train(folder, "new", TRAIN),
    "train patches": lambda folder: _train(folder, "new", PATCHES),
    "train imported": lambda folder: api.train(
        folder / "imported", folder / "new", config=TRAIN, features="imported", val_fraction=0.0
    ).spec().model_dump(mode="json"),
    "train again": lambda folder: _train(folder, "run", TRAIN),
    "train resumed": lambda folder: _train(folder, "begun", LONGER),
    "train folds again": lambda folder: _train(folder, "folds", TRAIN, split=FOLDS),
    "train folds resumed": lambda folder: _train(folder, "begun_folds", TRAIN, split=FOLDS),
    "train best": lambda folder: api.train(
        folder / "store", folder / "new", sweep=folder / "sweep"
    ).spec().model_dump(mode="json"),
    "tune again": _tune,
    "evaluate": lambda folder: _evaluate(folder, "run"),
    "evaluate with sweep": lambda folder: _evaluate(folder, "best", "sweep"),
    "evaluate folds": lambda folder: _evaluate(folder, "folds"),
    "predict": lambda folder: _predict(folder, "run", ("s4",), "new"),
    "predict more": lambda folder: _predict(folder, "run", ("s4", "s0"), "predictions"),
    "predict by folds": lambda folder: _predict(folder, "folds", ("s4",), "new"),
    "download": lambda folder: _download(folder, "run"),
}  # fmt: skip


def write_cohort(folder: Path) -> None:
    """A store of six slides of 20 patches, an imported one, finished and unfinished runs, a sweep and predictions."""
    rows = ["slide_id,uri,label,split"]
    for k, (slide_id, split) in enumerate(zip(SLIDE_IDS, SPLITS, strict=True)):
        pixels = np.full((160, 256, 3), 244, np.uint8)
        stain = np.array((200, 110 + 10 * (k % 2), 170))
        pixels[:128, :160] = np.clip(np.random.default_rng(k).normal(stain, 25, (128, 160, 3)), 0, 255)
        write_pyramid(folder / f"{slide_id}.tiff", pixels, 0.5, 2, quality=95)
        rows.append(f"{slide_id},{slide_id}.tiff,{k % 2},{split}")
    (folder / "manifest.csv").write_text("\n".join(rows) + "\n")
    write_bags(folder / "bags.npz")
    store = str(folder / "store")
    api.plan_ingestion(str(folder / "manifest.csv"), store, None, 2)
    for name in ("ingest again", "import again", "encode again"):
        COMMANDS[name](folder)
    api.encode(store, "efficientnet_lite0,input_px=64", config=ENCODE, name="other")
    assert {len(PatchStore(store).slide(slide_id)) for slide_id in SLIDE_IDS} == {20}
    for name in ("train again", "train folds again"):
        COMMANDS[name](folder)
    _begin_runs(folder)
    spec = prepare_sweep(store, str(folder / "sweep"), TUNE, SplitConfig())
    publish(str(folder / "sweep"), spec, [
        TrialResult(k, config.pooling, config.learning_rate, 2, 0.7 - k / 9, 0.5 + k / 9, "ok", None)
        for k, config in enumerate(trial_configs(TUNE))
    ])  # fmt: skip
    api.train(store, folder / "best", sweep=folder / "sweep")
    for run, sweep in (("run", None), ("folds", None), ("best", "sweep")):
        _evaluate(folder, run, sweep)
    _predict(folder, "run", ("s0", "s1"), "predictions")


def _begin_runs(folder: Path) -> None:
    """A run that stopped after its second epoch, and one of folds whose second fold is missing."""
    begun = Run(str(folder / "begun"))
    prepare_run(str(folder / "store"), begun.uri, LONGER, SplitConfig())
    with contextlib.suppress(StopError):
        train_run(begun.uri, LocalContext(begun.checkpoints_uri, torch.device("cpu"), StopAfter(2)))
    shutil.copytree(folder / "folds", folder / "begun_folds")
    folds = folder / "begun_folds"
    for name in ("out_of_fold.json", "history.parquet", "predictions.parquet", "folds/1/model.safetensors",
                 "folds/1/history.parquet", "folds/1/predictions.parquet"):  # fmt: skip
        (folds / name).unlink()


def read_tree(folder: Path) -> Tree:
    """Content and time of every file below a folder."""
    files = (Path(root, name) for root, _, names in os.walk(folder) for name in names)
    return {str(file.relative_to(folder)): (file.read_bytes(), file.stat().st_mtime_ns) for file in files}


def restore_tree(folder: Path, tree: Tree) -> None:
    """Make the files below a folder those of a tree again."""
    now = read_tree(folder)
    for name in now.keys() - tree.keys():
        (folder / name).unlink()
    for below, _, _ in os.walk(folder, topdown=False):
        if not any(Path(below).iterdir()):
            Path(below).rmdir()
    for name, (data, time_ns) in tree.items():
        if now.get(name) != (data, time_ns):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
            os.utime(folder / name, ns=(time_ns, time_ns))


class Opened:
    """Files below a folder that this process opens, while it is watched."""

    def __init__(self, folder: Path) -> None:
        self._below, self._names = f"{folder}/", None
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        names = self._names
        if names is not None and event == "open" and isinstance(arguments[0], str | Path):
            path, _, flags = arguments
            path = str(path)
            if path.startswith(self._below) and not flags & (os.O_WRONLY | os.O_RDWR):
                names.add(path.removeprefix(self._below))

    def during(self, work: Callable[[], object]) -> set[str]:
        self._names = names = set()
        try:
            work()
        finally:
            self._names = None
        return names


class Mutation(NamedTuple):
    """One object, what is done to it, and the command that reads it."""

    command: str
    change: str
    name: str


# the sweep would go on, which needs Ray
SWEEP_BEGUN = Mutation("tune again", "delete", "sweep/best.json")


class Outcome(NamedTuple):
    """How a command ended: ``right``, ``error`` or ``told`` with a line that names the object, else a fault."""

    kind: str
    line: str


class Undisturbed(NamedTuple):
    """What a command returns, reads and leaves behind without any damage."""

    result: str
    after: dict[str, object]
    reads: list[str]


def kind_of(name: str) -> str:
    """Objects of one kind may be taken for each other: of another slide, array, fold, run or chunk."""
    name = re.sub(r"^(run|best|begun|begun_folds|folds|new)/(folds/\d+/)?", "RUN/", name)
    name = re.sub(r"^(store|imported)/", "STORE/", name)
    name = re.sub(r"slides/[^/]+\.zarr/(features/)?[^/]+/", "slides/SLIDE/ARRAY/", name)
    return re.sub(r"/[a-z]*\d+(?=[./]|$)", "/N", name)


def comparable(name: str, data: bytes) -> object:
    """The content of an object without what depends on the time."""
    base = name.rsplit("/", 1)[-1]
    if base == "history.parquet":
        rows = pq.read_table(pa.BufferReader(data)).to_pylist()
        return repr([row for row in rows if row["metric"] not in TIMES])
    if base == "files.json":
        return {key: value for key, value in json.loads(data)["files"].items() if key != "history.parquet"}
    if base == "state.json":
        state = json.loads(data)
        history = [row for row in state.pop("history") if row[2] not in TIMES]
        return {key: value for key, value in state.items() if key != "sha256"} | {"history": history}
    return data


def is_without_times(name: str) -> bool:
    """Not so: event files, and the catalogue, which is made anew where it is damaged and knows its history."""
    return "/tensorboard/" not in name and "/catalogue/" not in name


def mutate(folder: Path, name: str, other: str | None, change: str, generator: random.Random) -> None:
    """Change one object, or exchange two."""
    file = folder / name
    data = file.read_bytes()
    if change == "delete":
        file.unlink()
    elif change == "truncate":
        file.write_bytes(data[: generator.choice([0, generator.randrange(len(data)), len(data) - 1])])
    elif change == "flip":
        place = generator.randrange(len(data))
        file.write_bytes(data[:place] + bytes([data[place] ^ 1 << generator.randrange(8)]) + data[place + 1 :])
    else:
        assert other is not None
        file.write_bytes((folder / other).read_bytes())
        (folder / other).write_bytes(data)


def names_object(line: str, name: str) -> bool:
    """The line has the object's path, its slide and array, or its name in the run."""
    if name in line:
        return True
    slide = re.search(r"slides/([^/]+)\.zarr/((?:features/)?[^/]+)(/|$)", name)
    if slide is not None:
        slide_id, array = slide[1], slide[2]
        return re.search(rf"\b{slide_id}\b", line) is not None and (array == "zarr.json" or array in line)
    if name.endswith("/manifest.parquet") and re.search(
        rf"manifest of \S*{name.removesuffix('/manifest.parquet')}\b", line
    ):
        return True
    source = re.search(r"sources/([^/]+)\.json", name)
    base = name.rsplit("/", 1)[-1]
    return (source is not None and source[1] in line) or (len(base) > 2 and base in line)


class Mutations:
    """Commands on a cohort, each with and without damage.

    Args:
        folder: that ``write_cohort`` filled.
        commands: to call, by name.
    """

    def __init__(self, folder: Path, commands: dict[str, Command]) -> None:
        self.folder, self.commands = folder, commands
        self.tree = read_tree(folder)
        opened = Opened(folder)
        self.undisturbed = {name: self._watch(name, opened) for name in commands}

    def _watch(self, command: str, opened: Opened) -> Undisturbed:
        results: list[str] = []
        reads = opened.during(lambda: results.append(self._call(command)[0]))
        after = self._after()
        restore_tree(self.folder, self.tree)
        names = sorted(name for name in reads & self.tree.keys() if self.tree[name][0] and not INPUTS.fullmatch(name))
        return Undisturbed(results[0], after, names)

    def repeated(self) -> dict[str, object]:
        """Commands whose result or objects differ when they are called again on the same cohort."""
        differing: dict[str, object] = {}
        for name, expected in self.undisturbed.items():
            result, after = self._call(name)[0], self._after()
            restore_tree(self.folder, self.tree)
            changed = sorted(each for each in after | expected.after if after.get(each) != expected.after.get(each))
            if result != expected.result or changed:
                differing[name] = changed or result
        return differing

    def draw(self, generator: random.Random) -> Mutation:
        """A command, an object that it reads, and a change."""
        command = generator.choice(list(self.commands))
        name = generator.choice(self.undisturbed[command].reads)
        change = generator.choice(CHANGES if self._neighbours(name) else CHANGES[:-1])
        mutation = Mutation(command, change, name)
        return self.draw(generator) if mutation == SWEEP_BEGUN else mutation

    def _neighbours(self, name: str) -> list[str]:
        kind, data = kind_of(name), self.tree[name][0]
        return [other for other in self.tree if kind_of(other) == kind and self.tree[other][0] != data]

    def end(self, mutation: Mutation, generator: random.Random) -> Outcome:
        """Call the command on the damaged cohort, and restore it."""
        _, change, name = mutation
        other = generator.choice(self._neighbours(name)) if change == "swap" else None
        mutate(self.folder, name, other, change, generator)
        damaged = [name] if other is None else [name, other]
        before = {each: self._read(each) for each in damaged}
        try:
            return self._compare(mutation.command, damaged, before)
        finally:
            restore_tree(self.folder, self.tree)

    def _compare(self, command: str, damaged: list[str], before: dict[str, bytes | None]) -> Outcome:
        try:
            result, lines = self._call(command)
        except MILError as error:
            named = any(names_object(error.line, name) for name in damaged)
            return Outcome("error" if named else "error without name", error.line)
        except Exception as error:  # noqa: BLE001 - a traceback of any other kind is what is looked for
            return Outcome("traceback", f"{type(error).__name__}: {error}")
        undisturbed, after = self.undisturbed[command], self._after(set(damaged))
        expected = {name: value for name, value in undisturbed.after.items() if name not in damaged}
        changed = sorted(name for name in after.keys() | expected.keys() if after.get(name) != expected.get(name))
        changed += [name for name in damaged if not self._is_left(name, before[name], undisturbed.after)]
        if result == undisturbed.result and not changed:
            return Outcome("right", "")
        if any(names_object(line, name) for name in damaged for line in lines.splitlines()):
            return Outcome("told", lines)
        return Outcome("silent", f"{changed} {lines!r} {result} instead of {undisturbed.result}")

    def _call(self, command: str) -> tuple[str, str]:
        """What a command returns, and what it says."""
        for told_once in (run_files._log_unchecked, catalogue._log_damage, catalogue._log_absent):
            told_once.cache_clear()
        with contextlib.redirect_stderr(io.StringIO()) as lines:
            result = self.commands[command](self.folder)
        return repr(result), lines.getvalue()

    def _after(self, without: set[str] = frozenset()) -> dict[str, object]:  # type: ignore[assignment]
        tree = read_tree(self.folder)
        return {
            name: comparable(name, data)
            for name, (data, _) in tree.items()
            if name not in without and is_without_times(name)
        }

    def _is_left(self, name: str, before: bytes | None, after: dict[str, object]) -> bool:
        """A damaged object is as it was damaged, or what the undisturbed command leaves there."""
        now = self._read(name)
        if now == before or (now is None and name not in after):
            return True
        return now is not None and name in after and comparable(name, now) == after[name]

    def _read(self, name: str) -> bytes | None:
        return (self.folder / name).read_bytes() if (self.folder / name).is_file() else None


def outcomes(mutations: Mutations, count: int, seed: int) -> Iterator[tuple[Mutation, Outcome]]:
    """The outcomes of mutations drawn at random."""
    generator = random.Random(seed)  # noqa: S311 - damage, not a secret
    for _ in range(count):
        mutation = mutations.draw(generator)
        yield mutation, mutations.end(mutation, generator)


def table(ended: list[tuple[Mutation, Outcome]]) -> str:
    """Numbers of right answers, errors and lines that name the object, by command and change."""
    count = Counter((mutation.command, mutation.change, outcome.kind) for mutation, outcome in ended)
    commands = sorted({command for command, _, _ in count})
    cells = {
        (command, change): "/".join(str(count[command, change, kind]) for kind in HANDLED)
        for command in commands
        for change in CHANGES
    }
    rows = [[command, *(cells[command, change] for change in CHANGES)] for command in commands]
    return "\n".join(f"{head:20}" + "".join(f"{cell:>12}" for cell in row) for head, *row in [["", *CHANGES], *rows])
