"""A small DICOM series of whole-slide microscopy: a file for each level, one of the label and one of the macro."""

import io
from pathlib import Path
from typing import NamedTuple

import imagecodecs
import numpy as np
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import JPEGBaseline8Bit, VLWholeSlideMicroscopyImageStorage, generate_uid

TILE = 256
LABEL = (0, 255, 0)
PATIENT = "MUSTERMANN^ERIKA"


class Series(NamedTuple):
    """What all files of a series have in common."""

    uid: str
    frame: str


def write_series(folder: Path, pixels: np.ndarray, mpp: float, levels: int = 2) -> Series:
    """Write levels of JPEG tiles, each half the one before, and a label and a macro without suffix."""
    folder.mkdir(parents=True, exist_ok=True)
    series = Series(generate_uid(), generate_uid())
    write_label(folder / "label", series)
    write_label(folder / "macro", series, "OVERVIEW")
    for level in range(levels):
        write_level(folder / f"level{level}.dcm", pixels, mpp, level, series)
    return series


def write_label(path: Path, series: Series, kind: str = "LABEL") -> None:
    """The macro, too, shows the label."""
    _write(path, np.full((TILE, TILE, 3), LABEL, np.uint8), 100.0, ["ORIGINAL", "PRIMARY", kind, "NONE"], series)


def write_level(path: Path, pixels: np.ndarray, mpp: float, level: int, series: Series) -> None:
    kind = ["DERIVED", "PRIMARY", "VOLUME", "RESAMPLED"] if level else ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    _write(path, level_pixels(pixels, level), mpp * 2**level, kind, series)


def level_pixels(pixels: np.ndarray, level: int) -> np.ndarray:
    return np.asarray(Image.fromarray(pixels).reduce(2**level))


def decoded(pixels: np.ndarray) -> np.ndarray:
    """Pixels of a level as a stock decoder has them from its JPEG tiles."""
    columns = -(-pixels.shape[1] // TILE)
    tiles = [np.asarray(Image.open(io.BytesIO(tile))) for tile in _tiles(pixels)]
    rows = [np.concatenate(tiles[k : k + columns], 1) for k in range(0, len(tiles), columns)]
    return np.concatenate(rows)[: pixels.shape[0], : pixels.shape[1]]


def _tiles(pixels: np.ndarray) -> list[bytes]:
    height, width = pixels.shape[:2]
    padded = np.pad(pixels, ((0, -height % TILE), (0, -width % TILE), (0, 0)), mode="edge")
    corners = [(top, left) for top in range(0, height, TILE) for left in range(0, width, TILE)]
    tiles = [np.ascontiguousarray(padded[top : top + TILE, left : left + TILE]) for top, left in corners]
    return [imagecodecs.jpeg8_encode(tile, level=95, subsampling="422") for tile in tiles]


def _write(path: Path, pixels: np.ndarray, mpp: float, image_type: list[str], series: Series) -> None:
    height, width = pixels.shape[:2]
    tiles = _tiles(pixels)
    image, measures, groups = Dataset(), Dataset(), Dataset()
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID = VLWholeSlideMicroscopyImageStorage
    image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID = generate_uid()
    image.StudyInstanceUID, image.SeriesInstanceUID, image.FrameOfReferenceUID = generate_uid(), *series
    image.Modality, image.PatientName, image.ImageType = "SM", PATIENT, image_type
    image.Rows = image.Columns = TILE
    image.SamplesPerPixel, image.PhotometricInterpretation, image.PlanarConfiguration = 3, "YBR_FULL_422", 0
    image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 8, 8, 7, 0
    image.NumberOfFrames = len(tiles)
    image.TotalPixelMatrixColumns, image.TotalPixelMatrixRows = width, height
    image.TotalPixelMatrixFocalPlanes = image.NumberOfOpticalPaths = 1
    image.DimensionOrganizationType = "TILED_FULL"
    image.ImagedVolumeWidth, image.ImagedVolumeHeight = width * mpp / 1000, height * mpp / 1000
    measures.PixelSpacing, measures.SliceThickness = [mpp / 1000, mpp / 1000], 0.001
    groups.PixelMeasuresSequence = [measures]
    image.SharedFunctionalGroupsSequence = [groups]
    image.PixelData = encapsulate(tiles)
    image["PixelData"].VR = "OB"
    image["PixelData"].is_undefined_length = True
    image.save_as(path, enforce_file_format=True)
