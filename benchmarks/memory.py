"""Resident memory of this process, from /proc/self/status.

``ru_maxrss`` of a process begins at the mark of the process that started it; ``VmHWM`` does not.
"""

from pathlib import Path
from typing import Literal


def resident_mb(field: Literal["VmRSS", "VmHWM"]) -> float:
    """The present (VmRSS) or the highest (VmHWM) resident set, in MB of 10^6 bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    line = next(line for line in lines if line.startswith(field))
    return int(line.split()[1]) * 1024 / 1e6
