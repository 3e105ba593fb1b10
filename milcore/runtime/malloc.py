"""Memory that the C library gives back and takes again at every layer of a network, kept instead; and given back.

Activations of a forward pass are large blocks, freed and allocated over and over. By default glibc returns each to the
kernel, which zeroes its pages again at the next layer: on CPUs that took half the time of encoding.
"""

import ctypes

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_KEEP_BLOCKS_BELOW_BYTES = 1 << 30
_NEVER_TRIM = 2**31 - 1


def keep_freed_memory() -> None:
    """Let this process reuse freed blocks below 1 GiB; without glibc nothing changes."""
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(_M_MMAP_THRESHOLD, _KEEP_BLOCKS_BELOW_BYTES)
        library.mallopt(_M_TRIM_THRESHOLD, _NEVER_TRIM)


def release_freed_memory() -> None:
    """Give freed blocks back to the kernel; without glibc nothing changes.

    Where small results outlive the large blocks they came from, they lie between the holes, which then fit no other
    large block: the heap grows although little of it is in use.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim"):
        library.malloc_trim(0)
