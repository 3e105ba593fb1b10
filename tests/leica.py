"""A small Leica SCN: a slide of which a part was scanned, so that OpenSlide gives it bounds."""

from pathlib import Path

import numpy as np
import tifffile

NM_PER_PX = 500
_IMAGE = (
    '<image name="{name}"><creationDate>2012</creationDate><device model="L" version="1"/>'
    '<pixels sizeX="{width}" sizeY="{height}"><dimension sizeX="{width}" sizeY="{height}" r="0" ifd="{ifd}"/></pixels>'
    '<view sizeX="{extent[0]}" sizeY="{extent[1]}" offsetX="{offset[0]}" offsetY="{offset[1]}" spacingZ="0"/>'
    "<scanSettings><objectiveSettings><objective>{power}</objective></objectiveSettings><illuminationSettings>"
    "<numericalAperture>0.4</numericalAperture><illuminationSource>brightfield</illuminationSource>"
    "</illuminationSettings></scanSettings></image>"
)


def write_scn(path: Path, pixels: np.ndarray, corner: tuple[int, int], size: tuple[int, int]) -> None:
    """Write a slide of 0.5 um/px whose scanned part has these pixels, with its corner in the slide's own px."""
    height, width = pixels.shape[:2]
    macro = np.full((size[1] // 16, size[0] // 16, 3), 255, np.uint8)
    extent = tuple(edge * NM_PER_PX for edge in size)
    of_macro = _IMAGE.format(
        name="m", width=macro.shape[1], height=macro.shape[0], ifd=0, extent=extent, offset=(0, 0), power=0.6
    )
    of_scan = _IMAGE.format(
        name="s", width=width, height=height, ifd=1, extent=(width * NM_PER_PX, height * NM_PER_PX),
        offset=tuple(edge * NM_PER_PX for edge in corner), power=20,
    )  # fmt: skip
    xml = (
        '<?xml version="1.0" encoding="utf-8"?>\n<scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01">'
        f'<collection name="c" sizeX="{extent[0]}" sizeY="{extent[1]}"><barcode>x</barcode>'
        f"{of_macro}{of_scan}</collection></scn>"
    )
    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        for image, description in ((macro, xml), (pixels, None)):
            tiff.write(
                image, tile=(256, 256), photometric="rgb", compression="jpeg", compressionargs={"level": 95},
                description=description, metadata=None, resolution=(20_000, 20_000), resolutionunit="CENTIMETER",
            )  # fmt: skip
