"""Source of bags in one ``.npz`` file.

``bag`` has the bag number of each instance, ``y`` the label of each bag. ``bags-npz`` has features in ``X``,
``patches-npz`` pixels in ``patches`` and, where known, positions in ``xy`` and the class of each instance in ``cls`` (a
name, or a number that ``cls_names`` may name).
"""

import io
import lzma
import tokenize
import zipfile
import zlib
from functools import partial

import numpy as np
import numpy.typing as npt

from milcore.cohort.manifest import Manifest, make_manifest
from milcore.config import ImportConfig
from milcore.errors import InputError, StorageError
from milcore.ingestion.imports.coords import corners_problem, patch_grid
from milcore.ingestion.imports.declared_size import archive_problem
from milcore.ingestion.imports.folder import READ_ERRORS
from milcore.ingestion.imports.source import (
    Array,
    Instances,
    Source,
    array_digest,
    rows_by_slide,
    table_source,
)
from milcore.runtime import storage
from milcore.store.feature_type import feature_type
from milcore.store.writer import RowName

_Arrays = dict[str, Array]
_Rows = dict[RowName, Array]


def open_bags(uri: str, config: ImportConfig) -> Source:
    """Source of bags of features: ``X`` (n, d), ``bag`` (n,), ``y`` (bags,).

    Raises:
        InputError: arrays are missing, do not fit, or a label is not valid.
    """
    arrays = _load(uri, ("X", "bag", "y"))
    features = arrays["X"]
    if features.ndim != 2 or features.dtype.kind not in "fiu":
        raise InputError(
            f"{uri}: X: expected features of instances, got shape {features.shape}, type {features.dtype}; allowed: "
            "numbers (instance, feature)"
        )
    features = features.astype(np.float32)
    manifest, rows = _bags(uri, arrays, len(features), config.positive)

    def read(slide_id: str) -> Instances:
        of_slide = features[rows[slide_id]]
        return Instances(of_slide, None, {}, array_digest(of_slide))

    return table_source(uri, manifest, read, feature_type(features))


def open_patches(uri: str, config: ImportConfig) -> Source:
    """Source of bags of patches: ``patches``, ``bag``, ``y``, and optional ``xy`` and ``cls``.

    ``patches`` have shape (n, p, p), (n, p, p, 1) or (n, p, p, 3), u1.

    Raises:
        InputError: arrays are missing, do not fit, or a label or class is not valid.
    """
    arrays = _load(uri, ("patches", "bag", "y"))
    patches = arrays["patches"] = _with_channels(uri, arrays["patches"])
    manifest, bags = _bags(uri, arrays, len(patches), config.positive)
    rows, names = _instance_classes(uri, arrays, config)
    if "xy" in arrays:
        rows["coords"] = _corners(uri, arrays["xy"], patches, config)
    read = partial(_read_patches, patches=patches, rows=rows, class_names=names, bags=bags, config=config)
    return table_source(uri, manifest, read, None)


def _read_patches(  # noqa: PLR0913 - the tables of all bags
    slide_id: str,
    *,
    patches: Array,
    rows: _Rows,
    class_names: tuple[str, ...] | None,
    bags: _Arrays,
    config: ImportConfig,
) -> Instances:
    indices = bags[slide_id]
    of_bag, bag_rows = patches[indices], {name: values[indices] for name, values in rows.items()}
    grid = None
    if "coords" in bag_rows and len(indices):
        grid = patch_grid(bag_rows["coords"], config.patch_size_level0, patches.shape[1], None)
    sha256 = array_digest(of_bag, *bag_rows.values())
    return Instances(None, of_bag, bag_rows, sha256, grid, class_names=class_names)


def _load(uri: str, needed: tuple[str, ...]) -> _Arrays:
    """Load all arrays of a file.

    Raises:
        InputError: it cannot be read, or lacks one that is needed.
    """
    try:
        data = io.BytesIO(storage.read_bytes(uri))
        with zipfile.ZipFile(data) as archive:
            problem = archive_problem(archive)
        if problem is not None:
            raise ValueError(problem)
        data.seek(0)
        with np.load(data, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except StorageError:
        raise
    except (*READ_ERRORS, zipfile.BadZipFile, zlib.error, lzma.LZMAError, tokenize.TokenError) as error:
        raise InputError(
            f"{uri} cannot be read as .npz ({type(error).__name__}: {error}); give one with {', '.join(needed)}"
        ) from None
    lacking = [name for name in needed if name not in arrays]
    if lacking:
        raise InputError(
            f"{uri}: expected the arrays {', '.join(needed)}, got {', '.join(arrays)}; allowed: further arrays; add "
            f"{', '.join(lacking)}"
        )
    return arrays


def _bags(uri: str, arrays: _Arrays, count: int, positive: str | None) -> tuple[Manifest, _Arrays]:
    """Cohort with a slide per bag, and the indices of its instances, ascending."""
    bag, labels = arrays["bag"], arrays["y"]
    if labels.ndim != 1 or bag.shape != (count,) or bag.dtype.kind not in "iu":
        raise InputError(
            f"{uri}: bag: expected the bag of each instance and y the label of each bag, got shape {bag.shape}, type "
            f"{bag.dtype}, y of shape {labels.shape}; allowed: whole numbers ({count},), y of one axis"
        )
    if count and (bag.min() < 0 or bag.max() >= len(labels)):
        raise InputError(
            f"{uri}: bag: expected indices of the labels y, got {bag.min()} to {bag.max()}; allowed: 0 to "
            f"{len(labels) - 1}"
        )
    names = [f"bag-{number:04d}" for number in range(len(labels))]
    manifest = make_manifest(
        uri, ({"slide_id": n, "label": y} for n, y in zip(names, labels.tolist(), strict=True)), positive
    )
    return manifest, dict(zip(names, rows_by_slide(bag, len(labels)), strict=True))


def _with_channels(uri: str, patches: Array) -> Array:
    if patches.ndim == 3:
        patches = patches[..., None]
    if (
        patches.ndim != 4
        or patches.shape[1] != patches.shape[2]
        or patches.shape[3] not in {1, 3}
        or patches.dtype != np.uint8
    ):
        raise InputError(
            f"{uri}: patches: expected square patches, got shape {patches.shape}, type {patches.dtype}; allowed: "
            "uint8, (n, p, p), (n, p, p, 1) or (n, p, p, 3)"
        )
    return patches


def _corners(uri: str, xy: Array, patches: Array, config: ImportConfig) -> npt.NDArray[np.int32]:
    """Upper left corners of patches, rounded down, level-0 px."""
    if xy.shape != (len(patches), 2) or xy.dtype.kind not in "fiu" or not np.isfinite(xy).all():
        raise InputError(
            f"{uri}: xy: expected a position per patch, level-0 px, got shape {xy.shape}; allowed: "
            f"({len(patches)}, 2), all finite"
        )
    problem = corners_problem(xy)
    if problem is not None:
        raise InputError(f"{uri}: xy: {problem}")
    edge = config.patch_size_level0 or patches.shape[1]
    return np.floor(xy - (edge / 2 if config.xy == "centre" else 0.0)).astype(np.int32)


def _instance_classes(uri: str, arrays: _Arrays, config: ImportConfig) -> tuple[_Rows, tuple[str, ...] | None]:
    """Rows ``instance_classes`` and ``instance_labels``, and the class names.

    No labels where the config names no positive class; no names without classes.
    """
    if "cls" not in arrays:
        if config.positive_instances:
            raise InputError(
                f"{uri}: expected an array cls for --positive-instances, got {', '.join(arrays)}; drop the option"
            )
        return {}, None
    names, numbers = _classes(uri, arrays)
    rows: _Rows = {"instance_classes": numbers}
    unknown = [name for name in config.positive_instances if name not in names]
    if unknown:
        raise InputError(
            f"positive_instances: expected classes in cls of {uri}, got {', '.join(unknown)}; allowed: "
            f"{', '.join(names)}"
        )
    if config.positive_instances:
        positive = np.isin(numbers, [names.index(name) for name in config.positive_instances])
        rows["instance_labels"] = np.where(numbers < 0, -1, positive).astype(np.int8)
    return rows, tuple(names)


def _classes(uri: str, arrays: _Arrays) -> tuple[list[str], npt.NDArray[np.int32]]:
    """Class names, and the number of each instance's class among them.

    -1 for an empty name or a negative number.
    """
    classes = arrays["cls"]
    if classes.shape != arrays["bag"].shape or classes.dtype.kind not in "iuUb":
        raise InputError(
            f"{uri}: cls: expected a class per instance, got shape {classes.shape}, type {classes.dtype}; allowed: "
            f"names or whole numbers {arrays['bag'].shape}"
        )
    if classes.dtype.kind == "U":
        names = sorted(set(classes.tolist()) - {""})
        return names, np.array([names.index(name) if name else -1 for name in classes.tolist()], np.int32)
    numbers = np.maximum(classes.astype(np.int32), -1)
    of_numbers = arrays.get("cls_names", np.arange(numbers.max(initial=-1) + 1))
    if numbers.max(initial=-1) >= len(of_numbers):
        raise InputError(
            f"{uri}: cls: expected indices of cls_names, got {numbers.max()}; allowed: below {len(of_numbers)}"
        )
    return [str(name) for name in of_numbers.tolist()], numbers
