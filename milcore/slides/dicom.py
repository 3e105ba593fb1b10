"""Files of a DICOM slide: one series of whole-slide microscopy in one folder.

Mostly each level is a file. OpenSlide opens any file of a series and finds the others beside it. The surprise: one
whose header is damaged it leaves out without a word, so that a slide would lose its finest level; hence every file is
opened here once.
"""

import posixpath
from pathlib import Path
from typing import BinaryIO

import openslide

from milcore.errors import SlideError
from milcore.runtime import storage

_MAGIC_AT, _MAGIC = 128, b"DICM"
_SUFFIXES = (".dcm", ".dicom")
# the table of contents of a medium, no image
_DIRECTORY = "DICOMDIR"


def series_folder(uri: str) -> str | None:
    """Folder of a DICOM slide; None for a slide of one file.

    None on ``https://`` too, where no folder can be listed.

    Args:
        uri: of the folder, or of one file of the series.
    """
    if uri.startswith("https://"):
        return None
    return uri if storage.is_folder(uri) else series_folder_of_file(uri)


def series_folder_of_file(uri: str) -> str | None:
    """Folder of the DICOM slide that a file is of; else None."""
    if uri.startswith("https://"):
        return None
    magic = storage.read_range(uri, _MAGIC_AT, _MAGIC_AT + len(_MAGIC))
    return posixpath.dirname(uri) if magic == _MAGIC else None


def is_one_file(uri: str) -> bool:
    """True for a name with a suffix, and none of DICOM's."""
    suffix = posixpath.splitext(uri)[1].lower()
    return bool(suffix) and suffix not in _SUFFIXES


def is_dicom(file: BinaryIO) -> bool:
    """True for an open file that is DICOM, whatever it begins with."""
    file.seek(_MAGIC_AT)
    return file.read(len(_MAGIC)) == _MAGIC


def series_files(folder: Path, name: str | None = None) -> tuple[Path, ...]:
    """Files of the series of a folder, in the order of their names.

    Args:
        folder: with one series, where no file is named.
        name: of a file of the series; the folder may have others too.

    Raises:
        SlideError: the folder has no series, or several, or a file in it cannot be opened.
    """
    series = {path: _series_uid(path) for path in sorted(folder.iterdir()) if path.name == name or _is_image(path)}
    if not series:
        raise SlideError("a folder without DICOM files; name the file of the slide, or the folder of a DICOM series")
    uids = sorted(set(series.values()))
    if name is None and len(uids) > 1:
        shown = ", ".join(uids[:3]) + (" …" if len(uids) > 3 else "")
        raise SlideError(
            f"expected a folder of one DICOM series, got {len(uids)} ({shown}); put each into a folder of its own, or "
            "name one file of the series"
        )
    uid = uids[0] if name is None else series[folder / name]
    return tuple(path for path in series if series[path] == uid)


def _is_image(path: Path) -> bool:
    """True for a DICOM image, or a file that is one by its name."""
    if path.name.startswith(".") or path.name == _DIRECTORY or not path.is_file():
        return False
    with path.open("rb") as file:
        return is_dicom(file) or path.suffix.lower() in _SUFFIXES


def _series_uid(path: Path) -> str:
    try:
        with openslide.OpenSlide(str(path)) as slide:
            return str(slide.properties["dicom.SeriesInstanceUID"])
    except (openslide.OpenSlideError, KeyError):
        # not the error's text, which may quote the file
        raise SlideError(
            f"{path.name}: expected a DICOM file by which OpenSlide opens a slide, got one that is damaged, is no "
            "whole-slide microscopy, or whose series has no VOLUME image; restore it, or move it out of the folder"
        ) from None
