"""Images of an OME-TIFF, from its OME-XML: their pages, scale, objective and channels.

The XML stands in the first page and describes the images of the file, of which one may be the slide and others its
macro, or further regions of interest. Those whose pages lie in other files are left out.
"""

import re
import xml.etree.ElementTree as ET
from typing import NamedTuple

from milcore.slides.mpp import UM_PER_UNIT_NAME, parse_number

# channels of a colour image, as writers name them; a name such as DAPI tells of fluorescence
_COLOUR_NAME = re.compile(r"|red|green|blue|[rgb]|rgb|bright ?field|(channel|c)?[ :]*[\d:]*", re.IGNORECASE)
_OVERVIEW_NAME = re.compile(r"macro|label|overview|thumbnail", re.IGNORECASE)
_FLUORESCENCE = ("EmissionWavelength", "ExcitationWavelength", "Fluor")
_MOST_PLANES = 4096


class OmeImage(NamedTuple):
    """One image of an OME-TIFF.

    Args:
        name: empty where absent.
        size: (width, height) in px.
        mpp: um/px in x and y; None where absent.
        magnification: of its objective; None where absent.
        pages: numbers of its pages.
        colour_pages: those of red, green and blue, where each of them is a page of its own; else empty.
    """

    name: str
    size: tuple[int, int]
    mpp: tuple[float | None, float | None]
    magnification: float | None
    pages: tuple[int, ...]
    colour_pages: tuple[int, ...]

    @property
    def is_overview(self) -> bool:
        """True for a picture of the glass, such as its macro or label image."""
        return _OVERVIEW_NAME.search(self.name) is not None

    @property
    def extent_um(self) -> float | None:
        """Width in um; None where the scale is unknown."""
        return None if self.mpp[0] is None else self.size[0] * self.mpp[0]


def is_ome(description: str) -> bool:
    """True for a description that is OME-XML."""
    return description[-10:].strip().endswith("OME>")


def read_ome_xml(xml: str) -> tuple[OmeImage, ...]:
    """The images that OME-XML describes, in its order; none of damaged XML."""
    if "<!DOCTYPE" in xml:  # entities, which may grow without bound
        return ()
    try:
        root = ET.fromstring(xml)  # noqa: S314 - without a document type there are no entities
        return tuple(_images(root))
    except (ET.ParseError, ValueError):
        return ()


def _images(root: ET.Element) -> list[OmeImage]:
    objectives = {
        each.get("ID"): parse_number(each.get("NominalMagnification")) for each in root.iterfind(".//{*}Objective")
    }
    images = []
    for element in root.iterfind("{*}Image"):
        pixels, settings = element.find("{*}Pixels"), element.find("{*}ObjectiveSettings")
        if pixels is None:
            continue
        channels = _channel_pages(pixels, root.get("UUID"))
        image = OmeImage(
            name=element.get("Name", ""),
            size=(int(pixels.get("SizeX", "0")), int(pixels.get("SizeY", "0"))),
            mpp=(_um(pixels, "X"), _um(pixels, "Y")),
            magnification=None if settings is None else objectives.get(settings.get("ID")),
            pages=tuple(page for _, page in channels),
            colour_pages=_colour_pages(pixels, dict(channels)),
        )
        images.append(image)
    return images


def _um(pixels: ET.Element, axis: str) -> float | None:
    size = parse_number(pixels.get(f"PhysicalSize{axis}"))
    unit = UM_PER_UNIT_NAME.get(pixels.get(f"PhysicalSize{axis}Unit", "µm"))
    return None if size is None or unit is None else size * unit


def _channel_pages(pixels: ET.Element, own_uuid: str | None) -> list[tuple[int, int]]:
    """Channel and number of each page in this file.

    A ``TiffData`` without a page begins at the first one; without a number of planes it is one page, or all planes
    where it names no page either.
    """
    planes = int(pixels.get("SizeC", "1")) * int(pixels.get("SizeZ", "1")) * int(pixels.get("SizeT", "1"))
    planes = min(planes, _MOST_PLANES)
    channels: list[tuple[int, int]] = []
    for data in pixels.iterfind("{*}TiffData"):
        uuid = data.find("{*}UUID")
        if uuid is not None and own_uuid is not None and (uuid.text or "").strip() != own_uuid:
            continue
        page, channel = int(data.get("IFD", "0")), int(data.get("FirstC", "0"))
        count = int(data.get("PlaneCount", "1" if "IFD" in data.attrib else str(planes)))
        channels += [(channel + k, page + k) for k in range(min(count, planes))]
    return channels


def _colour_pages(pixels: ET.Element, page_of: dict[int, int]) -> tuple[int, ...]:
    """Pages of red, green and blue.

    They are three channels of one sample each, of which none is a fluorophore.
    """
    channels = list(pixels.iterfind("{*}Channel"))
    names = [each.get("Name", "") for each in channels]
    is_plane = (pixels.get("SizeC"), pixels.get("SizeZ", "1"), pixels.get("SizeT", "1")) == ("3", "1", "1")
    is_colour = (
        all(each.get("SamplesPerPixel", "1") == "1" for each in channels)
        and not any(each.get(name) for each in channels for name in _FLUORESCENCE)
        and all(_COLOUR_NAME.fullmatch(name) for name in names)
    )
    if not (is_plane and is_colour and len(channels) == 3 and page_of.keys() == {0, 1, 2}):
        return ()
    letters = [name[:1].lower() for name in names]
    order = [letters.index(letter) for letter in "rgb"] if sorted(letters) == ["b", "g", "r"] else [0, 1, 2]
    return tuple(page_of[channel] for channel in order)
