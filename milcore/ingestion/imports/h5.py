"""Source of HDF5 files by CLAM, TRIDENT and STAMP, one per slide.

Which program wrote a file is read from the file. Datasets are ``features`` and, in level-0 px, ``coords``. CLAM:
features (n, d) f4, coords (n, 2), no attributes; where its coords were copied from ``patches/``, they carry
``patch_size`` and ``downsample`` of the level read. TRIDENT: its coords carry ``patch_size``, ``patch_size_level0``,
``level0_magnification``, ``target_magnification`` and, in later versions, ``level0_width`` and ``level0_height``.
STAMP: features are ``feats``, coords are in um, and the file carries ``unit``, ``tile_size_um`` (earlier
``tile_size``) and ``tile_size_px``; before it did, coords had the unit 256/224 um.

Source: CLAM ``extract_features_fp.py`` and ``wsi_core/WholeSlideImage.py``; TRIDENT ``trident/wsi_objects/WSI.py``;
STAMP ``stamp/modeling/data.py``.
"""

from pathlib import Path
from typing import Any

import h5py

from milcore.config import ImportConfig
from milcore.errors import SlideError
from milcore.ingestion.imports.coords import grid_step
from milcore.ingestion.imports.declared_size import size_problem
from milcore.ingestion.imports.folder import READ_ERRORS, FileContent, FileKind, open_files, positive_number
from milcore.ingestion.imports.source import Array, Source

# patches of STAMP 1, whose files do not tell
STAMP_1_PX, STAMP_1_UM = 224, 256.0


def open_h5(uri: str, config: ImportConfig) -> Source:
    """Source of a folder of ``<slide_id>.h5``, or of CLAM's folder around ``h5_files``.

    Raises:
        InputError: the labels cannot be read, or there is no such file at all.
    """
    return open_files(uri, config, FileKind((".h5", ".hdf5"), "h5_files", read_h5))


def read_h5(path: Path) -> FileContent:
    """Read features and coords of one file.

    Raises:
        SlideError: it is no HDF5, is truncated, has no features, or has them in another file.
    """
    try:
        with h5py.File(path, "r") as file:
            features, feats, coords = (_dataset(file, name) for name in ("features", "feats", "coords"))
            values = feats if features is None else features
            if values is None:
                raise SlideError(f"no features in it, but {len(file)} other entries")
            if coords is None:
                return FileContent(values[...], None, None, None, None)
            if features is None:
                return _stamp_content(values[...], coords[...], dict(file.attrs))
            return FileContent(values[...], coords[...], *_grid_attrs(dict(coords.attrs)))
    except READ_ERRORS as error:
        # not the error's text, which may quote the file
        raise SlideError(f"not readable as HDF5 ({type(error).__name__})") from None


def _dataset(file: h5py.File, name: str) -> h5py.Dataset | None:
    """Data set of the file itself, no value read; None where it has none.

    Links, external storage and virtual data sets read any file of the machine.

    Raises:
        SlideError: its values lie elsewhere, or are more than a slide has.
    """
    link = file.get(name, getlink=True)
    if link is not None and not isinstance(link, h5py.HardLink):
        raise SlideError(f"{name} is a {type(link).__name__}; allowed: data in the file itself")
    values = file.get(name)
    if not isinstance(values, h5py.Dataset):
        return None
    if values.external or values.is_virtual:
        raise SlideError(f"{name} lies in other files; allowed: data in the file itself")
    if values.shape is None:
        raise SlideError(f"{name} has no values; allowed: numbers")
    problem = size_problem(values.nbytes, values.id.get_storage_size())
    if problem is not None:
        raise SlideError(f"{name} of shape {values.shape} {problem}")
    return values


def _stamp_content(features: Array, coords: Array, attrs: dict[str, Any]) -> FileContent:
    """Content of a file by STAMP.

    Raises:
        SlideError: the unit of its coords is unknown.
    """
    edge_um, edge = (positive_number(attrs, name) for name in ("tile_size_um", "tile_size_px"))
    if edge_um is None and attrs.get("unit") == "um":
        edge_um = positive_number(attrs, "tile_size")
    if edge_um is not None:
        return FileContent(features, coords, edge_um, None if edge is None else int(edge), None, 1.0)
    step = positive_number(attrs, "tile_size")
    if step is None and coords.ndim == 2 and coords.shape[1] == 2 and coords.dtype.kind in "fiu":
        step = grid_step(coords)
    if step is None or round(step) != STAMP_1_PX:
        raise SlideError(f"coords {step} apart in an unknown unit; allowed: um, with the attribute tile_size_um")
    return FileContent(features, coords, STAMP_1_PX, STAMP_1_PX, None, STAMP_1_UM / STAMP_1_PX)


def _grid_attrs(attrs: dict[str, Any]) -> tuple[float | None, int | None, tuple[int, int] | None]:
    """Patch edge in level-0 px and in px, and the slide's size.

    Each None where the attributes lack it.
    """
    edge, width, height = (positive_number(attrs, name) for name in ("patch_size", "level0_width", "level0_height"))
    size = None if width is None or height is None else (int(width), int(height))
    return _edge_level0(attrs, edge), None if edge is None else int(edge), size


def _edge_level0(attrs: dict[str, Any], edge: float | None) -> float | None:
    edge_level0 = positive_number(attrs, "patch_size_level0")
    if edge_level0 is not None or edge is None:
        return edge_level0
    source, target = (positive_number(attrs, name) for name in ("level0_magnification", "target_magnification"))
    if source is not None and target is not None:
        return edge * source / target
    downsample = positive_number(attrs, "downsample")
    return None if downsample is None else edge * downsample
