"""Source with a file of features per slide and a table of labels.

A labelled slide without a file is quarantined until the next run; a file without a label is left out.
"""

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from milcore.cohort.manifest import IMPORT_REQUIRED, Slide, read_manifest
from milcore.config import MAX_ARRAY_GB, MAX_WIDTH, ImportConfig
from milcore.errors import InputError, SlideError, UnreachableSlideError
from milcore.ingestion.imports.coords import corners_problem, patch_grid
from milcore.ingestion.imports.slide_image import slide_mpp
from milcore.ingestion.imports.source import Array, Instances, Source
from milcore.runtime import storage
from milcore.runtime.allow_list import check_uri
from milcore.slides.source import fetch, file_version

# exceptions of the libraries that read such files, on damaged ones
READ_ERRORS = (
    OSError, RuntimeError, ValueError, EOFError, LookupError, TypeError, AttributeError, ArithmeticError, MemoryError,
)  # fmt: skip


class FileKind(NamedTuple):
    """Kind of file.

    Args:
        suffixes: of the files' names.
        subfolder: where the program that writes them puts them.
        parse: reads a file.
    """

    suffixes: tuple[str, ...]
    subfolder: str
    parse: Callable[[Path], "FileContent"]


class FileContent(NamedTuple):
    """Content of a file, not yet checked.

    Args:
        features: (n, d), or (1, n, d).
        coords: corners (x, y) in the unit of the file, (n, 2), or (1, n, 2).
        patch_size_level0: patch edge in the same unit.
        patch_size: patch edge in px that the encoder got.
        size_level0: (width, height) of the slide, level-0 px.
        unit_um: um of the unit of coords; None where it is the level-0 px.
    """

    features: Array
    coords: Array | None
    patch_size_level0: float | None
    patch_size: int | None
    size_level0: tuple[int, int] | None
    unit_um: float | None = None


def open_files(uri: str, config: ImportConfig, kind: FileKind) -> Source:
    """Source of the labelled slides of a folder, or of one file.

    Raises:
        InputError: the labels cannot be read, or there is no such file at all.
    """
    check_uri(str(config.labels), "labels")
    manifest = read_manifest(str(config.labels), config.positive, IMPORT_REQUIRED)
    files = _files(uri, kind)
    unlabelled = sorted(files.keys() - {slide.slide_id for slide in manifest.slides})

    def file_of(slide: Slide) -> str:
        if slide.slide_id not in files:
            raise UnreachableSlideError(f"no file {slide.slide_id}{kind.suffixes[0]} in {uri}")
        return files[slide.slide_id]

    def read(slide: Slide) -> Instances:
        with contextlib.ExitStack() as stack:
            file = fetch(file_of(slide), stack)
            return _instances(kind.parse(file.path), slide, file.sha256, config)

    def version(slide: Slide) -> dict[str, Any]:
        return file_version(file_of(slide))._asdict()

    return Source(manifest, lambda slide: files.get(slide.slide_id), version, read, None, tuple(unlabelled))


def positive_number(values: Mapping[Any, Any], name: str) -> float | None:
    """Entry that is a positive number, else None.

    Of a pair the first: CLAM has one downsample per axis.
    """
    try:
        value = float(np.ravel(values[name])[0])
    except (LookupError, TypeError, ValueError, ArithmeticError, RuntimeError):
        return None
    return value if 0 < value < np.inf else None


def _files(uri: str, kind: FileKind) -> dict[str, str]:
    """URI of every file by slide id, which is the file's name without suffix."""
    if uri.endswith(kind.suffixes):
        return {PurePosixPath(uri).stem: uri}
    for folder in (uri, storage.join(uri, kind.subfolder)):
        names = [name for name in storage.names(folder) if name.endswith(kind.suffixes)]
        if names:
            return {PurePosixPath(name).stem: storage.join(folder, name) for name in names}
    suffixes = " or ".join(kind.suffixes)
    raise InputError(
        f"{uri}: expected a file per slide, got none here or in the folder {kind.subfolder}; allowed: {suffixes}"
    )


def _px_per_unit(unit_um: float | None, slide: Slide) -> float:
    """Level-0 px per unit of a file's coords.

    Raises:
        SlideError: the unit is in um, and neither the labels nor the slide's file have um/px.
    """
    if unit_um is None:
        return 1.0
    mpp = slide_mpp(slide)
    if mpp is None:
        raise SlideError("coords in um, and no um/px of the slide; give mpp, or uri of the slide, in the labels")
    return unit_um / mpp


def _instances(content: FileContent, slide: Slide, sha256: str, config: ImportConfig) -> Instances:
    """Check the content of a file.

    Raises:
        SlideError: features are no table of numbers, or coords are not one per row.
    """
    features = _without_leading_one(content.features)
    if features.nbytes > MAX_ARRAY_GB * 1e9:
        raise SlideError(
            f"features of shape {features.shape}, {features.nbytes / 1e9:,.0f} GB; allowed: {MAX_ARRAY_GB} GB"
        )
    if features.ndim != 2 or not features.shape[1] or features.dtype.kind not in "fiu":
        raise SlideError(
            f"features of shape {features.shape}, type {features.dtype}; allowed: numbers (instance, feature)"
        )
    if features.shape[1] > MAX_WIDTH:
        raise SlideError(f"features {features.shape[1]:,} wide; allowed: {MAX_WIDTH:,}")
    if content.coords is None:
        return Instances(features, None, {}, sha256)
    scale = _px_per_unit(content.unit_um, slide)
    coords = _corners(_without_leading_one(content.coords), len(features), scale)
    edge = None if content.patch_size_level0 is None else content.patch_size_level0 * scale
    grid = patch_grid(coords, config.patch_size_level0, edge, content.size_level0) if len(coords) else None
    return Instances(features, None, {"coords": coords}, sha256, grid, content.patch_size)


def _corners(coords: Array, rows: int, scale: float) -> Array:
    """Corners in level-0 px.

    Rounded down, or to the nearest where they had another unit.
    """
    if coords.ndim != 2 or coords.shape[1] != 2 or coords.dtype.kind not in "fiu":
        raise SlideError(
            f"coords of shape {coords.shape}, type {coords.dtype}; allowed: numbers (instance, 2), level-0 px"
        )
    if len(coords) != rows:
        raise SlideError(f"{rows} rows of features, {len(coords)} of coords; allowed: one place per row")
    coords = coords if scale == 1.0 else np.rint(coords * scale)
    problem = corners_problem(coords)
    if problem is not None:
        raise SlideError(problem)
    return np.floor(coords).astype(np.int32)


def _without_leading_one(values: Array) -> Array:
    return values[0] if values.ndim == 3 and len(values) == 1 else values
