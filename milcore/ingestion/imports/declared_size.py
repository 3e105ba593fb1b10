"""Sizes that a file declares, checked before memory is taken for its values.

No file of features or patches packs its values a hundredfold; one that claims to was made to fill a machine's memory,
or was never filled in.
"""

import zipfile

from milcore.config import MAX_ARRAY_GB

MOST_BYTES_PER_STORED_BYTE = 200
# below this, whatever its packing, an array harms nobody
_SMALL_GB = 1.0


def size_problem(declared: int, stored: int) -> str | None:
    """Reason why so many bytes are not read; None where they may be.

    Args:
        declared: bytes of the values.
        stored: bytes that they take up in the file.
    """
    if declared > MAX_ARRAY_GB * 1e9:
        return f"declares {declared / 1e9:,.0f} GB; allowed: {MAX_ARRAY_GB} GB"
    if declared > _SMALL_GB * 1e9 and declared > MOST_BYTES_PER_STORED_BYTE * stored:
        return (
            f"declares {declared / 1e9:,.0f} GB, has {stored / 1e6:,.1f} MB; allowed: {MOST_BYTES_PER_STORED_BYTE} "
            "times what it has"
        )
    return None


def archive_problem(archive: zipfile.ZipFile) -> str | None:
    """Reason why an archive is not unpacked; None where it may be."""
    members = archive.infolist()
    return size_problem(sum(member.file_size for member in members), sum(member.compress_size for member in members))
