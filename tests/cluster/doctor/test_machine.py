"""Each failure of a machine is a finding with what to do; a machine that works has none."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from milcore.cluster.doctor.finding import Finding
from milcore.cluster.doctor.machine import (
    disk_finding,
    machine_findings,
    memory_finding,
    python_finding,
    thread_finding,
)
from milcore.cluster.doctor.packages import parse_pins, version_findings

GIB = 1 << 30


def test_this_machine_fails_nothing() -> None:
    findings = list(machine_findings())
    assert [each for each in findings if each.state == "failure"] == []
    checks = ["Python", "torch", "threads", "memory", "temporary folder", "slide readers", "codecs", "Ray"]
    assert [each.check for each in findings if each.check != "packages"] == checks
    assert all(bool(each.remedy) == (each.state != "ok") for each in findings)


@pytest.mark.parametrize(
    ("modules", "checks"),
    [
        (["torch", "ray", "openslide"], {"torch", "Ray", "slide readers"}),
        (["torch", "ray", "imagecodecs"], {"torch", "Ray", "codecs"}),
    ],
)
def test_a_library_that_does_not_load_is_a_failure_and_the_checks_go_on(modules: list[str], checks: set[str]) -> None:
    program = (
        f"import json, sys; sys.modules |= dict.fromkeys({modules})\n"
        "from milcore.cluster.doctor.machine import machine_findings\n"
        "print(json.dumps([each.check for each in machine_findings() if each.state == 'failure']))"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert checks <= set(json.loads(ended.stdout))


@pytest.mark.parametrize(
    ("finding", "state", "words"),
    [
        (python_finding((3, 10, 4)), "failure", "expected 3.11 or later, got 3.10.4"),
        (python_finding((3, 11, 7)), "ok", "3.11.7"),
        (thread_finding(8, None, {"OMP_NUM_THREADS": "1"}), "warning", "held to 1 of 8 CPU(s) by OMP_NUM_THREADS"),
        (thread_finding(8, None, {"OMP_NUM_THREADS": "8"}), "ok", "8 CPU(s)"),
        (thread_finding(1, 0.5, {}), "warning", "a quota of 0.5 CPU"),
        (thread_finding(1, 1.5, {}), "ok", "1 CPU(s), by a quota of 1.5"),
        (memory_finding(2 * GIB), "warning", "2 GiB, less than the 4 GiB"),
        (memory_finding(24 * GIB + GIB // 2), "ok", "24.5 GiB"),
    ],
)
def test_python_threads_and_memory_are_judged(finding: Finding, state: str, words: str) -> None:
    assert finding.state == state
    assert words in finding.text
    assert bool(finding.remedy) == (state != "ok")


def test_a_temporary_folder_is_written_and_its_room_is_judged(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert disk_finding(str(tmp_path), usual=1, least=1).state == "ok"
    assert "Ray's files may need" in disk_finding(str(tmp_path), usual=1 << 60, least=1).text
    assert disk_finding(str(tmp_path), usual=1 << 61, least=1 << 60).state == "failure"
    for absent in ("none", "file"):
        finding = disk_finding(str(tmp_path / absent))
        assert (finding.state, "TMPDIR" in finding.remedy) == ("failure", True)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


REQUIREMENTS = ["torch>=2.13,<2.14", "PyYAML", "zarr<4,>=3.1.6", 'timm; extra == "timm"']


@pytest.mark.parametrize(
    ("here", "states", "words"),
    [
        ({"torch": "2.13.0+cpu", "pyyaml": "6.0", "zarr": "3.1.6"}, ["ok"], "3 required packages"),
        (
            {"torch": "2.12.0", "pyyaml": "6.0", "zarr": "3.1.6"},
            ["failure"],
            "torch: expected <2.14,>=2.13, got 2.12",
        ),
        ({"torch": "2.13.0", "zarr": "3.1.6"}, ["failure"], "pyyaml: expected any version, got none"),
        ({"torch": "2.13.0", "pyyaml": "6.1", "zarr": "3.1.6"}, ["warning"], "pyyaml 6.1 (6.0)"),
        ({"torch": "2.14.0", "pyyaml": "6.1", "zarr": "3.1.6"}, ["failure", "warning"], "torch: expected"),
    ],
)
def test_packages_are_held_to_ranges_and_told_where_they_differ_from_the_pins(
    here: dict[str, str], states: list[str], words: str
) -> None:
    pins = parse_pins("torch==2.13.0\nPyYAML==6.0  # parser\nzarr==3.1.6\n")
    findings = list(version_findings(REQUIREMENTS, here.get, pins))
    assert [each.state for each in findings] == states
    assert words in findings[0].text
