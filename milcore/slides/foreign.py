"""Formats of slides that no reader here reads, and what converts them.

Some are recognised by their name alone: a VSI is a small TIFF whose slide lies in other files, an OME-Zarr is a folder.
"""

import posixpath

_BIO_FORMATS = "convert it to OME-TIFF with bioformats2raw and raw2ometiff, or with QuPath"
_OWN_SOFTWARE = "convert it to a tiled pyramidal TIFF with the scanner's own software"

# by the end of the name, in small letters
_FORMATS = {
    ".vsi": ("an Olympus VSI, whose slide lies in the folder beside it", _BIO_FORMATS),
    ".ets": ("a part of an Olympus VSI", _BIO_FORMATS),
    ".lif": ("a Leica LIF", _BIO_FORMATS),
    ".nd2": ("a Nikon ND2", _BIO_FORMATS),
    ".zarr": ("an OME-Zarr", "convert it to OME-TIFF with raw2ometiff, or with QuPath"),
    ".zarr.zip": ("an OME-Zarr", "unpack it, and convert it to OME-TIFF with raw2ometiff, or with QuPath"),
    ".ozx": ("an OME-Zarr", "unpack it, and convert it to OME-TIFF with raw2ometiff, or with QuPath"),
    ".isyntax": ("a Philips iSyntax", _OWN_SOFTWARE),
    ".kfb": ("a KFBIO KFB", _OWN_SOFTWARE),
    ".sdpc": ("a Sqray SDPC", _OWN_SOFTWARE),
}
# OpenSlide reads some of them: only one that it cannot open is to be converted
_CZI_HEAD = b"ZISRAWFILE"


def foreign_format(name: str, head: bytes = b"") -> str | None:
    """Reason why a file is not read, with what converts it; else None.

    Args:
        name: of the file, or its URI.
        head: its first bytes.
    """
    if head.startswith(_CZI_HEAD):
        return f"a Zeiss CZI; {_BIO_FORMATS}"
    lower = posixpath.basename(name.rstrip("/")).lower()
    suffix = next((end for end in _FORMATS if lower.endswith(end)), None)
    if suffix is None:
        return None
    kind, remedy = _FORMATS[suffix]
    return f"{kind}; {remedy}"
