"""Reproduce the experiments of Ilse, Tomczak, Welling 2018.

python -m benchmarks.ilse2018 --bags FILE.npz [--folds FILE.npz]     classic MIL sets, 10-fold cross-validation
python -m benchmarks.ilse2018 --mnist FILE.npz [--training-bags 50,100,200]     MNIST-bags, LeNet-5 from pixels
python -m benchmarks.ilse2018 --patches FILE.npz     histology from pixels, 10-fold cross-validation

Stores and the result of every fold are kept below --out; the same command goes on where it stopped.
"""

import argparse
import contextlib
import functools
import hashlib
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.ilse2018.figure import draw
from benchmarks.ilse2018.protocol import FoldResult, Protocol, run_fold
from benchmarks.ilse2018.sets import Experiment, MnistBags, bags_experiment, mnist_experiments, patches_experiment
from benchmarks.ilse2018.settings import ENCODERS_OF, LEARNING_RATE_FACTORS, protocol_of
from benchmarks.ilse2018.table import markdown, summary, versions
from milcore import __version__
from milcore.cluster.launch import encode_with
from milcore.cluster.workers.connect import connected
from milcore.cluster.workers.map import map_on_ray
from milcore.config import POOLING_LEVELS, POOLING_NAMES, POOLING_SCOPES, EncodeConfig, LaunchConfig, Level, PoolingName
from milcore.errors import InputError, MILError
from milcore.runtime import storage
from milcore.runtime.limits import cpus
from milcore.runtime.progress import log_line, track
from milcore.store.store import PatchStore


def main() -> None:
    """Run the experiments that the command line names and print their table."""
    given = arguments()
    try:
        rows = list(measure(given))
    except MILError as error:
        log_line(f"ilse2018: {error.line}")
        sys.exit(error.exit_code)
    print(markdown(rows))
    if given.json:
        print(json.dumps(rows[0] if len(rows) == 1 else {**rows[0], "rows": rows}))


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.ilse2018", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    kind = parser.add_mutually_exclusive_group(required=True)
    kind.add_argument("--bags", metavar="FILE", help="npz with X (instance, feature), bag (instance), y (bag)")
    kind.add_argument("--mnist", metavar="FILE", help="npz with x_train, y_train, x_test, y_test")
    kind.add_argument("--patches", metavar="FILE", help="npz with patches, bag, y and perhaps cls and xy")
    parser.add_argument("--folds", metavar="FILE", help="npz with test_fold (repeat, bag); default: drawn, stratified")
    parser.add_argument("--repeats", type=int, help="the first N repeats (default: 5, with --patches 1)")
    parser.add_argument(
        "--pooling", default="gated_attention", help=f"names with commas, or all ({', '.join(POOLING_NAMES)})"
    )
    parser.add_argument("--level", default="embedding", help="embedding (default), instance, or both with a comma")
    parser.add_argument("--encoder", choices=sorted({name for names in ENCODERS_OF.values() for name in names}))
    parser.add_argument(
        "--settings", metavar="FILE", help="JSON of training settings; its row stands beside the rule's"
    )
    parser.add_argument("--members", type=int, help="models whose predictions are averaged (default: by kind of set)")
    parser.add_argument("--epochs", type=int, help="passes over the training bags (default: by kind of set)")
    parser.add_argument("--select", action="store_true", help="choose the learning rate too inside the training bags")
    parser.add_argument("--positive-instances", metavar="NAME", help="class of cls to be found (default: class 0)")
    parser.add_argument("--target", type=int, default=9, help="digit that makes an MNIST bag positive (default: 9)")
    parser.add_argument("--mean-length", type=int, default=10, help="of MNIST-bags (default: 10)")
    parser.add_argument("--training-bags", type=sizes, default=(50, 100, 200), help="of MNIST-bags (50,100,200)")
    parser.add_argument("--workers", type=int, default=cpus(), help="folds at a time, on Ray; 0: here")
    parser.add_argument("--out", default="ilse2018", help="folder for stores and fold results (default: ilse2018)")
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    return parser.parse_args()


def sizes(text: str) -> tuple[int, ...]:
    """Numbers with commas between."""
    return tuple(int(size) for size in text.split(","))


def measure(given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A row for each experiment, pooling and level, as they come."""
    launch = LaunchConfig(workers=given.workers)
    experiments = experiments_of(given)
    with connected(launch) if launch.workers else contextlib.nullcontext():
        for experiment in experiments:
            if given.encoder == "efficientnet_lite0":
                for store_uri in dict.fromkeys(fold.store_uri for fold in experiment.folds):
                    encode_with(store_uri, EncodeConfig(encoder=given.encoder), launch)
            for pooling, level in wanted(given.pooling, given.level):
                for note, protocol in protocols(given, pooling, level):
                    yield row(experiment, protocol, note, Path(given.out) / "folds", launch)


def experiments_of(given: argparse.Namespace) -> list[Experiment]:
    """The experiments, their bags in stores."""
    file = given.bags or given.mnist or given.patches
    out = Path(given.out).absolute() / Path(file).stem
    repeats = given.repeats or (1 if given.patches else 5)
    if given.mnist:
        drawn = MnistBags(file, given.target, given.mean_length)
        return mnist_experiments(drawn, given.training_bags, repeats, out)
    if given.patches:
        return [patches_experiment(file, given.folds, repeats, given.positive_instances, out)]
    return [bags_experiment(file, given.folds, repeats, out)]


def wanted(poolings: str, levels: str) -> list[tuple[PoolingName, Level]]:
    """The combinations that the mathematics allows; all without those that read places, which the sets lack."""
    without_places = tuple(name for name, scope in POOLING_SCOPES.items() if not scope.is_placed)
    names = without_places if poolings == "all" else tuple(poolings.split(","))
    return [
        (name, level)  # type: ignore[misc]  # the config checks them
        for level in levels.split(",")
        for name in names
        if poolings != "all" or level in POOLING_LEVELS[name]
    ]


def protocols(given: argparse.Namespace, pooling: PoolingName, level: Level) -> Iterator[tuple[str, Protocol]]:
    """Default protocol, and that of the file of settings if given."""
    kind = "bags" if given.bags else "mnist" if given.mnist else "patches"
    encoder = given.encoder or ENCODERS_OF[kind][0]
    if encoder not in ENCODERS_OF[kind]:
        raise InputError(f"--encoder {encoder} with --{kind}; allowed: {', '.join(ENCODERS_OF[kind])}")
    changes = {"epochs": given.epochs} if given.epochs else {}
    protocol = protocol_of(encoder, {"pooling": pooling, "level": level, **changes}, given.members)
    if given.select:
        protocol = protocol.with_candidates(LEARNING_RATE_FACTORS)
    yield "", protocol
    if given.settings:
        yield f" ({Path(given.settings).stem})", protocol.with_settings(storage.read_json(given.settings))


def row(experiment: Experiment, protocol: Protocol, note: str, out: Path, launch: LaunchConfig) -> dict[str, Any]:
    """The figures of all folds, computed where they are not on disk."""
    folder = out / _key(experiment, protocol)
    missing = [fold for fold in experiment.folds if not _path(folder, fold.repeat, fold.number).exists()]
    started = time.perf_counter()
    work = functools.partial(run_fold, protocol)
    results = map_on_ray(work, missing, launch) if launch.workers else map(work, missing)
    name = f"{experiment.name}: {protocol.config.pooling}, {protocol.config.level}"
    for result in track(results, name, len(missing)):
        storage.write_json(str(_path(folder, result.repeat, result.number)), result._asdict())
    elapsed = _elapsed(folder, time.perf_counter() - started)
    folds = [_read(_path(folder, fold.repeat, fold.number)) for fold in experiment.folds]
    _draw(experiment, folds, folder)
    return {
        "dataset": experiment.name,
        "pooling": protocol.config.pooling,
        "level": protocol.config.level,
        "note": note,
        **summary(folds),
        "seconds": elapsed,
        "selection_seconds": elapsed * sum(fold.select_s for fold in folds) / sum(fold.total_s for fold in folds),
        "protocol": {**asdict(protocol), "config": protocol.config.model_dump(mode="json")},
        "versions": versions(),
    }


def _key(experiment: Experiment, protocol: Protocol) -> str:
    """Names results by all that they depend on."""
    settings = asdict(protocol) | {"config": protocol.config.model_dump(mode="json")}
    text = json.dumps([experiment, settings, __version__, FoldResult._fields])
    return f"{protocol.config.pooling}-{protocol.config.level}-{hashlib.sha256(text.encode()).hexdigest()[:10]}"


def _path(folder: Path, repeat: int, number: int) -> Path:
    return folder / f"{repeat}-{number}.json"


def _read(path: Path) -> FoldResult:
    return FoldResult(**json.loads(path.read_text()))


def _draw(experiment: Experiment, results: Sequence[FoldResult], folder: Path) -> None:
    """Draw attention over the positive test bags of the first fold.

    Bags are left out whose instances have no pixels or no coordinates.
    """
    store = PatchStore(experiment.folds[0].store_uri)
    for name, attention in results[0].attention.items():
        slide = store.slide(name)
        if slide.has_patches and slide.has_coords:
            draw(slide, np.array(attention), folder / f"{name}.png")


def _elapsed(folder: Path, seconds: float) -> float:
    """Wall time of all commands that worked on this row, in seconds."""
    uri = str(folder / "elapsed.json")
    before = storage.read_json(uri)["seconds"] if storage.exists(uri) else 0.0
    storage.write_json(uri, {"seconds": before + seconds})
    return float(before + seconds)


if __name__ == "__main__":
    main()
