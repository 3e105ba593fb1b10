"""Data sets of three kinds as stores and outer folds.

Each file becomes a store by the product's import. Classic MIL sets (``X, bag, y``) and histology (``patches, bag, y``,
maybe ``cls`` and ``xy``) are cut into 10 folds, by a file of folds or stratified at random. MNIST-bags are drawn:
N(mean, sd) digits a bag, positive if the target digit is among them, half of the bags positive; a repeat has test bags
of its own.
"""

import hashlib
import io
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from sklearn.model_selection import StratifiedKFold

from benchmarks.ilse2018.protocol import Fold
from milcore.config import ImportConfig
from milcore.errors import InputError
from milcore.ingestion.imports.import_cohort import import_source
from milcore.runtime import storage
from milcore.store.store import PatchStore

FOLDS = 10
TEST_BAGS = 1000
# the standard deviations that the source has for its mean bag lengths; a fifth of the mean elsewhere
LENGTH_SD = {10: 2.0, 50: 10.0, 100: 20.0}
POSITIVE_CLASS = 0


class Experiment(NamedTuple):
    """A data set: its folds, and the sha256 of its file."""

    name: str
    sha256: str
    folds: tuple[Fold, ...]


def bags_experiment(file: str, folds_file: str | None, repeats: int, out: Path) -> Experiment:
    """A classic MIL set."""
    store_uri = str(out / "store")
    _import(file, store_uri, ImportConfig(format="bags-npz"))
    return Experiment(Path(file).stem, _sha256(file), tuple(_outer_folds(store_uri, folds_file, repeats)))


def patches_experiment(file: str, folds_file: str | None, repeats: int, positive: str | None, out: Path) -> Experiment:
    """Histology from pixels.

    ``positive`` names the class of positive instances; None is class 0.
    """
    store_uri = str(out / "store")
    names = (positive,) if positive is not None else _first_class(file)
    _import(file, store_uri, ImportConfig(format="patches-npz", positive_instances=names))
    return Experiment(Path(file).stem, _sha256(file), tuple(_outer_folds(store_uri, folds_file, repeats)))


class MnistBags(NamedTuple):
    """File of MNIST, digit that makes a bag positive, mean bag length."""

    file: str
    target: int
    mean_length: int


def mnist_experiments(drawn: MnistBags, sizes: Sequence[int], repeats: int, out: Path) -> list[Experiment]:
    """MNIST-bags: one experiment per number of training bags, a fold per repeat.

    Smaller training sets are the first bags of larger ones.
    """
    digest = _sha256(drawn.file)
    stores = [_mnist_store(drawn, max(sizes), repeat, out) for repeat in range(repeats)]
    ids = [PatchStore(store_uri).slide_ids() for store_uri in stores]
    return [
        Experiment(
            f"mnist-bags, mean length {drawn.mean_length}, {size} training bags",
            digest,
            tuple(
                Fold(repeat, 0, store_uri, tuple(slide_ids[TEST_BAGS : TEST_BAGS + size]), tuple(slide_ids[:TEST_BAGS]))
                for repeat, (store_uri, slide_ids) in enumerate(zip(stores, ids, strict=True))
            ),
        )
        for size in sizes
    ]


def draw_bags(
    digits: np.ndarray, drawn: MnistBags, count: int, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bags of digits: which image each instance is, its bag, and each bag's label.

    Half of the bags are positive; which, is drawn. A bag is drawn again until its label is the one wanted.

    Args:
        digits: the class of every image to draw from.
        drawn: which digit makes a bag positive, and how long bags are.
        count: of bags.
        random: the generator.

    Source: Ilse et al. 2018, section 4.2; the authors' loader draws bags in this way.
    """
    mean, sd = drawn.mean_length, LENGTH_SD.get(drawn.mean_length, drawn.mean_length / 5)
    labels = random.permutation(np.arange(count) % 2).astype(np.int64)
    bags = []
    for label in labels:
        while True:
            images = random.integers(len(digits), size=max(1, round(random.normal(mean, sd))))
            if np.any(digits[images] == drawn.target) == label:
                break
        bags.append(images)
    bag = np.repeat(np.arange(count), [len(images) for images in bags])
    return np.concatenate(bags), bag, labels


def _mnist_store(drawn: MnistBags, train_bags: int, repeat: int, out: Path) -> str:
    """Store of a repeat: bags of the test images, then of the training images."""
    folder = out / f"digit-{drawn.target}-length-{drawn.mean_length}-bags-{train_bags}-repeat-{repeat}"
    source, store_uri = folder / "bags.npz", str(folder / "store")
    if not source.exists():
        random = np.random.default_rng([repeat, drawn.target, drawn.mean_length])
        mnist = _arrays(drawn.file)
        parts = [
            _mnist_part(mnist[f"x_{split}"], mnist[f"y_{split}"], drawn, count, random)
            for split, count in (("test", TEST_BAGS), ("train", train_bags))
        ]
        parts[1]["bag"] += TEST_BAGS
        sink = io.BytesIO()
        np.savez(sink, **{name: np.concatenate([part[name] for part in parts]) for name in parts[0]})
        storage.write_bytes(str(source), sink.getvalue())
    _import(str(source), store_uri, ImportConfig(format="patches-npz", positive_instances=(str(drawn.target),)))
    return store_uri


def _mnist_part(
    images: np.ndarray, digits: np.ndarray, drawn: MnistBags, count: int, random: np.random.Generator
) -> dict[str, np.ndarray]:
    chosen, bag, labels = draw_bags(digits, drawn, count, random)
    return {"patches": images[chosen], "cls": digits[chosen].astype(np.int32), "bag": bag, "y": labels}


def _first_class(file: str) -> tuple[str, ...]:
    """The name of instance class 0, where instances have classes."""
    arrays = _arrays(file)
    if "cls" not in arrays:
        return ()
    if arrays["cls"].dtype.kind == "U":
        return (sorted(set(arrays["cls"].tolist()) - {""})[POSITIVE_CLASS],)
    return (str(arrays["cls_names"][POSITIVE_CLASS]) if "cls_names" in arrays else str(POSITIVE_CLASS),)


def _arrays(file: str) -> dict[str, np.ndarray]:
    """All arrays of a file.

    Raises:
        InputError: it cannot be read.
    """
    try:
        with np.load(file) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{file} cannot be read as .npz ({type(error).__name__}: {error}); see --help for what it is to hold"
        ) from None


def _sha256(file: str) -> str:
    try:
        return hashlib.sha256(Path(file).read_bytes()).hexdigest()
    except OSError as error:
        raise InputError(f"{file} cannot be read ({error}); allowed: an .npz file") from None


def _import(file: str, store_uri: str, config: ImportConfig) -> None:
    outcome = import_source(file, store_uri, config)
    if outcome.quarantined:
        raise InputError(f"{file}: {len(outcome.quarantined)} bags cannot be used: {outcome.quarantined}")


def _outer_folds(store_uri: str, folds_file: str | None, repeats: int) -> list[Fold]:
    """Every fold of the first repeats."""
    slides = PatchStore(store_uri).manifest().slides
    labels = np.array([slide.label for slide in slides])
    test_fold = _drawn_folds(labels, repeats) if folds_file is None else _given_folds(folds_file, len(labels), repeats)
    return [
        Fold(
            repeat,
            int(fold),
            store_uri,
            tuple(slide.slide_id for slide, fold_of_slide in zip(slides, of_bag, strict=True) if fold_of_slide != fold),
            tuple(slide.slide_id for slide, fold_of_slide in zip(slides, of_bag, strict=True) if fold_of_slide == fold),
        )
        for repeat, of_bag in enumerate(test_fold)
        for fold in np.unique(of_bag)
    ]


def _given_folds(file: str, bags: int, repeats: int) -> np.ndarray:
    test_fold = _arrays(file).get("test_fold", np.empty(0))
    if test_fold.ndim != 2 or test_fold.shape[1] != bags:
        raise InputError(f"{file}: test_fold has shape {test_fold.shape}; allowed: (repeats, {bags}), a fold per bag")
    if repeats > len(test_fold):
        raise InputError(f"--repeats {repeats}: {file} holds {len(test_fold)}; allowed: at most so many")
    return test_fold[:repeats]


def _drawn_folds(labels: np.ndarray, repeats: int) -> np.ndarray:
    """``test_fold[repeat, bag]`` of seeded, stratified folds."""
    test_fold = np.zeros((repeats, len(labels)), np.int64)
    for repeat in range(repeats):
        cut = StratifiedKFold(FOLDS, shuffle=True, random_state=repeat).split(labels, labels)
        for fold, (_, test) in enumerate(cut):
            test_fold[repeat, test] = fold
    return test_fold
