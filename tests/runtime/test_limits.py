"""CPUs and memory of a process by what it sees of its cgroups, of version 1 and 2."""

import os
from pathlib import Path

import pytest

from milcore.runtime.limits import cpu_quota, cpus, is_in_memory, memory_bytes, memory_limit

RECORDED = Path(__file__).with_name("cgroups")
GIB = 1 << 30
ONE_AND_A_HALF = (1.5, 3 * GIB)
LIMITS = {
    "v1_machine": (None, None),
    "v1_podman": ONE_AND_A_HALF,
    "v1_podman_host_namespace": ONE_AND_A_HALF,
    "v1_pod": ONE_AND_A_HALF,
    "v1_nested": ONE_AND_A_HALF,
    "v2_machine": (None, None),
    "v2_docker": ONE_AND_A_HALF,
    "v2_docker_host_namespace": ONE_AND_A_HALF,
    "v2_docker_seen_from_another": ONE_AND_A_HALF,
    "v2_pod": (2.5, None),
    "v2_nested": ONE_AND_A_HALF,
    "v2_mounted_twice": ONE_AND_A_HALF,
}


def unpack(name: str, root: Path) -> str:
    """A file system with the recorded files."""
    for part in (RECORDED / f"{name}.txt").read_text().split("== ")[1:]:
        path, _, content = part.partition("\n")
        file = root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    return str(root)


def test_every_recording_has_its_limits() -> None:
    assert {path.stem for path in RECORDED.glob("*.txt")} == set(LIMITS)


@pytest.mark.parametrize("name", LIMITS)
def test_limits_are_the_smallest_from_the_own_cgroup_up(name: str, tmp_path: Path) -> None:
    root = unpack(name, tmp_path)
    assert (cpu_quota(root), memory_limit(root)) == LIMITS[name]


@pytest.mark.parametrize(("name", "expected"), [("v1_podman", 1), ("v2_docker", 1), ("v2_pod", 2), ("v1_machine", 64)])
def test_cpus_are_the_quota_rounded_down_and_at_most_the_affinity(
    name: str, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = unpack(name, tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    assert cpus(root) == expected
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3})
    assert cpus(root) == 1


def test_a_quota_below_one_cpu_is_one(tmp_path: Path) -> None:
    root = unpack("v2_docker", tmp_path)
    (tmp_path / "sys/fs/cgroup/cpu.max").write_text("20000 100000\n")
    assert cpus(root) == 1


def test_memory_is_the_limit_but_never_more_than_the_machine_has(tmp_path: Path) -> None:
    machine = 24_684_092 * 1024
    assert memory_bytes(unpack("v1_podman", tmp_path / "a")) == 3 * GIB
    assert memory_bytes(unpack("v1_machine", tmp_path / "b")) == machine
    root = unpack("v1_podman", tmp_path / "c")
    (tmp_path / "c/sys/fs/cgroup/memory/memory.limit_in_bytes").write_text(f"{2 * machine}\n")
    assert memory_bytes(root) == machine


def test_without_cgroups_there_is_no_limit(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    assert (cpu_quota(str(tmp_path)), memory_limit(str(tmp_path))) == (None, None)


@pytest.mark.parametrize(("kind", "expected"), [("tmpfs", True), ("ext4", False), ("overlay", False)])
def test_a_folder_lies_in_memory_by_the_mount_of_its_device(kind: str, expected: bool, tmp_path: Path) -> None:
    device = tmp_path.stat().st_dev
    lines = (
        "21 1 0:999 / /proc rw,relatime shared:5 - tmpfs proc rw",
        f"29 1 {os.major(device)}:{os.minor(device)} / /tmp rw,nosuid shared:7 - {kind} {kind} rw,size=1g",
    )
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/mountinfo").write_text("\n".join(lines))
    assert is_in_memory(tmp_path, str(tmp_path)) == expected
    assert not is_in_memory(tmp_path, str(tmp_path / "none"))
