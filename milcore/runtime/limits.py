"""CPUs and memory that this process may use, by cgroups version 1 and 2.

A container or pod has the CPUs of its quota and the memory of its limit, whatever its node has. A limit holds for all
cgroups below it, so that the smallest from the process's own up to the mount counts. A path in ``/proc/self/cgroup``
that lies outside what is mounted is that of another namespace; there the mount is the process's own cgroup.
"""

import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

# version 1 tells no limit by a number near 2^63
NO_LIMIT_BYTES = 1 << 60


def cpus(root: str = "/") -> int:
    """Number of CPUs that this process may use.

    The quota rounded down, at most the affinity, at least 1.

    Args:
        root: of the file system that has ``proc`` and ``sys``.
    """
    quota = cpu_quota(root)
    affinity = len(os.sched_getaffinity(0))
    return affinity if quota is None else max(1, min(affinity, math.floor(quota)))


def cpu_quota(root: str = "/") -> float | None:
    """CPUs of the smallest quota of its cgroups; None where there is none."""
    quotas = [quota for folder in _cgroups("cpu", root) if (quota := _cpus_of(folder)) is not None]
    return min(quotas, default=None)


def memory_limit(root: str = "/") -> int | None:
    """Bytes of the smallest memory limit of its cgroups, or None."""
    names = ("memory.max", "memory.limit_in_bytes")
    texts = [_text(folder / name) for folder in _cgroups("memory", root) for name in names]
    limits = [int(text) for text in texts if text.isdigit()]
    return min((limit for limit in limits if limit < NO_LIMIT_BYTES), default=None)


def memory_bytes(root: str = "/") -> int:
    """Bytes of its memory limit, at most those of the machine."""
    line = next(line for line in _text(Path(root, "proc/meminfo")).splitlines() if line.startswith("MemTotal:"))
    machine = int(line.split()[1]) * 1024
    limit = memory_limit(root)
    return machine if limit is None else min(machine, limit)


def is_in_memory(folder: Path, root: str = "/") -> bool:
    """True where files of a folder lie in memory (tmpfs), not on a disk."""
    device = folder.stat().st_dev
    for line in _text(Path(root, "proc/self/mountinfo")).splitlines():
        before, _, after = line.partition(" - ")
        if before.split(" ")[2] == f"{os.major(device)}:{os.minor(device)}":
            return after.split(" ")[0] in {"tmpfs", "ramfs"}
    return False


def _cpus_of(cgroup: Path) -> float | None:
    """CPUs of a cgroup's own quota."""
    quota, _, period = _text(cgroup / "cpu.max").partition(" ")
    if not quota:
        quota, period = (_text(cgroup / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() and int(period) > 0 else None


def _cgroups(controller: str, root: str) -> Iterator[Path]:
    """Folders of the cgroups with a controller, from its own up to the mount."""
    paths = dict(_paths(controller, root))
    for kind, mount, top in _mounts(controller, root):
        if kind in paths:
            yield from _up_to(Path(root, mount.lstrip("/")), paths[kind], top)


def _up_to(mount: Path, path: str, top: str) -> Iterator[Path]:
    """Folders from that of a path up to the mount, which has path ``top``."""
    own = PurePosixPath(path)
    inner = own.relative_to(top) if own.is_relative_to(top) and ".." not in own.parts else PurePosixPath()
    yield from (mount / each for each in (inner, *inner.parents))


def _paths(controller: str, root: str) -> Iterator[tuple[str, str]]:
    """Type and path of its cgroup in every hierarchy that may have a controller."""
    for line in _text(Path(root, "proc/self/cgroup")).splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0":
            yield "cgroup2", path
        elif controller in controllers.split(","):
            yield "cgroup", path


def _mounts(controller: str, root: str) -> Iterator[tuple[str, str, str]]:
    """Type, mount point and path there of every hierarchy that may have it."""
    mounts: dict[str, tuple[str, str, str]] = {}
    for line in _text(Path(root, "proc/self/mountinfo")).splitlines():
        before, _, after = line.partition(" - ")
        (top, point), (kind, _, options) = before.split(" ")[3:5], after.split(" ", 2)
        if kind == "cgroup2" or (kind == "cgroup" and controller in options.split(",")):
            mounts[point] = kind, point, top  # a later mount covers an earlier one
    yield from mounts.values()


def _text(path: Path) -> str:
    """Content of a file; empty where it cannot be read."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""
