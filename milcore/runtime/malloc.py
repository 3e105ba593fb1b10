"""Tuning of glibc's malloc: keep freed memory, or return it to the kernel.

Activations of a forward pass are large blocks, freed and allocated over and over. By default glibc returns each to the
kernel, which zeroes its pages again at the next layer: on CPUs that took half the time of encoding.
"""

import ctypes

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_KEEP_BLOCKS_BELOW_BYTES = 1 << 30
_NEVER_TRIM = 2**31 - 1


def keep_freed_memory() -> None:
    """Let this process reuse freed blocks below 1 GiB; no effect without glibc."""
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(_M_MMAP_THRESHOLD, _KEEP_BLOCKS_BELOW_BYTES)
        library.mallopt(_M_TRIM_THRESHOLD, _NEVER_TRIM)


def release_freed_memory() -> None:
    """Return freed blocks to the kernel; no effect without glibc.

    Where small results outlive the large blocks around them, the gaps between them fit no other large block: the heap
    grows although little of it is in use.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim"):
        library.malloc_trim(0)
