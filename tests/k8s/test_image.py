"""What the image installs: its lock, its bill of materials, and advisories against it; without an engine."""

import importlib.metadata
import importlib.util
import io
import json
import os
import re
import stat
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packaging.requirements import Requirement

from milcore.cluster.jobs.rayjob_spec import USER_ID
from pipeline import steps

ROOT = Path(__file__).resolve().parents[2]
IMAGE = ROOT / "k8s" / "image"
LOCK = IMAGE / "requirements.lock"
DOCKERFILE = (IMAGE / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
LOCK_LINE = re.compile(r"([a-z0-9-]+)==(\S+) \\\n    --hash=sha256:[0-9a-f]{64}")


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, IMAGE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def needed_by(requirements: list[str], extras: set[str]) -> Iterator[Requirement]:
    """The requirements that hold here, with these extras."""
    for requirement in map(Requirement, requirements):
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in (extras or {""})):
            yield requirement


def disagreements(lock: str) -> list[str]:
    """What keeps a lock from being what pyproject.toml and constraints.txt say, without asking any index."""
    body = "\n".join(line for line in lock.splitlines() if not line.startswith("#"))
    if LOCK_LINE.sub("", body).strip():
        return ["a line is no requirement with its sha256"]
    locked = dict(LOCK_LINE.findall(lock))
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    versions = {canonical(name): version for name, version in pins.items()}
    found = [f"{name} {version}" for name, version in locked.items() if versions.get(name) != version.split("+")[0]]
    todo = list(needed_by(script("lock").requirements(), set()))
    seen: set[tuple[str, str]] = set()
    while todo:
        requirement = todo.pop()
        name = canonical(requirement.name)
        if name not in locked:
            found.append(f"{name} is lacking")
            continue
        if (key := (name, ",".join(sorted(requirement.extras)))) in seen:
            continue
        seen.add(key)
        # another build, such as torch for CUDA, needs other packages
        if importlib.metadata.version(name) == locked[name]:
            todo += needed_by(importlib.metadata.requires(name) or [], {*requirement.extras, ""})
    unused = locked.keys() - {name for name, _ in seen}
    return sorted({*found, *(f"{name} is needed by none" for name in unused)})


def test_a_step_of_kubeflow_logs_its_own_lines_and_not_its_input(tmp_path: Path) -> None:
    """As the compiled pipeline starts it, with what the image adds to Python's path."""
    assert "ENV PYTHONPATH=/opt/milcore/site" in DOCKERFILE
    (tmp_path / "step.py").write_text("def step(uri: str):\n    print('the work', uri)\n")
    given = {
        "inputs": {"parameterValues": {"uri": "s3://b/run"}},
        "outputs": {"outputFile": str(tmp_path / "out.json")},
    }
    command = ["-m", "kfp.dsl.executor_main", "--component_module_path", str(tmp_path / "step.py"),
               "--function_to_execute", "step", "--executor_input", json.dumps(given)]  # fmt: skip
    surroundings = {**os.environ, "_KFP_RUNTIME": "true", "PYTHONPATH": str(IMAGE / "site")}
    ended = subprocess.run([sys.executable, *command], env=surroundings, capture_output=True, text=True, check=True)
    assert (ended.stdout, ended.stderr) == ("the work s3://b/run\n", "")


@pytest.mark.parametrize("name", ["docker.io/library/milcore:1", "milcore:1"], ids=["podman", "docker"])
def test_names_of_an_archive_are_told_in_full(tmp_path: Path, name: str) -> None:
    manifest = json.dumps([{"Config": "c.json", "RepoTags": [name], "Layers": []}]).encode()
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        entry = tarfile.TarInfo("manifest.json")
        entry.size = len(manifest)
        archive.addfile(entry, io.BytesIO(manifest))
    assert script("build").archive_names(tmp_path / "a.tar") == ["docker.io/library/milcore:1"]


def test_the_lock_agrees_with_the_pins_and_the_dependencies() -> None:
    assert disagreements(LOCK.read_text()) == []


@pytest.mark.parametrize(
    ("pattern", "replacement", "problem"),
    [
        (r"numpy==\S+", "numpy==1.0", "numpy 1.0"),
        (r"numpy==.*\n.*\n", "", "numpy is lacking"),
        (r"filelock==.*\n.*\n", "", "filelock is lacking"),
        (r"(numpy==.*)\n.*\n", r"\1\n", "a line is no requirement with its sha256"),
        (r"(numpy==)", f"beartype==0.23.1 \\\\\n    --hash=sha256:{'0' * 64}\n\\1", "beartype is needed by none"),
    ],
)
def test_a_lock_that_does_not_agree_is_found_out(pattern: str, replacement: str, problem: str) -> None:
    assert problem in disagreements(re.sub(pattern, replacement, LOCK.read_text(), count=1))


def test_the_lock_holds_torch_for_cpus_and_none_of_cuda() -> None:
    locked = dict(LOCK_LINE.findall(LOCK.read_text()))
    assert locked["torch"].endswith("+cpu")
    assert not [name for name in locked if name.startswith(("nvidia", "cuda", "triton"))]


def test_the_image_installs_by_hash_and_ours_without_dependencies() -> None:
    installs = [line for line in DOCKERFILE if line.startswith("RUN") and "pip install" in line]
    packages, ours = installs
    assert "--require-hashes --requirement requirements.lock" in packages
    assert "--no-deps ." in ours
    assert "ARG LOCK=k8s/image/requirements.lock" in DOCKERFILE
    assert not [line for line in DOCKERFILE if "://" in line]


def test_every_base_is_the_argument_which_may_be_a_digest() -> None:
    assert {line for line in DOCKERFILE if line.startswith("FROM ")} == {"FROM ${BASE}"}


def test_steps_ray_pods_and_the_image_have_one_user() -> None:
    (user,) = [line for line in DOCKERFILE if line.startswith("USER ")]
    assert user == f"USER {USER_ID}:{USER_ID}"
    assert steps.USER_ID == USER_ID


def test_lines_of_a_lock_are_by_name_and_a_file_without_sha256_is_refused() -> None:
    lock = script("lock")

    def package(name: str, **archive: Any) -> dict[str, Any]:
        return {"metadata": {"name": name, "version": "1"}, "download_info": {"url": f"x/{name}", **archive}}

    hashed = {"archive_info": {"hashes": {"sha256": "ab"}}}
    assert lock.lines([package("PyYAML", **hashed), package("a_B.c", **hashed)]) == [
        "a-b-c==1 \\\n    --hash=sha256:ab\n",
        "pyyaml==1 \\\n    --hash=sha256:ab\n",
    ]
    with pytest.raises(lock.LockError, match="b: expected a file with a sha256, got x/b"):
        lock.lines([package("b")])


def test_the_bill_of_materials_names_every_package_once_and_is_the_same_each_time() -> None:
    sbom = script("sbom")
    packages = list(sbom.python_packages())
    bill = sbom.bill(packages)
    assert bill == sbom.bill([*reversed(packages), packages[0]])
    assert (bill["bomFormat"], bill["specVersion"], bill["version"]) == ("CycloneDX", "1.6", 1)
    assert re.fullmatch(r"urn:uuid:[0-9a-f-]{36}", bill["serialNumber"])
    purls = [one["purl"] for one in bill["components"]]
    assert purls == sorted(set(purls))
    assert f"pkg:pypi/torch@{importlib.metadata.version('torch').replace('+', '%2B')}" in purls
    assert {one["type"] for one in bill["components"]} == {"library"}


def test_the_bill_of_materials_keeps_the_schema_of_cyclonedx() -> None:
    """The schema forbids unknown members, so that a misspelt one is found."""
    sbom, validator = script("sbom"), JsonStrictValidator(SchemaVersion.V1_6)
    bill = sbom.bill(list(sbom.python_packages()))
    assert validator.validate_str(json.dumps(bill)) is None
    bill["components"][0]["purl_"] = bill["components"][0].pop("purl")
    assert validator.validate_str(json.dumps(bill)) is not None


# what an engine is asked, and a packages' list in place of an image's
ENGINE = """#!/bin/sh
echo "$@" >> {log}
case "$1" in
  image) echo 1000 ;;
  run) exec {python} - ;;
esac
"""


def test_base_lock_and_bill_of_materials_go_through_the_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    build, log = script("build"), tmp_path / "log"
    engine = tmp_path / "bin/podman"
    engine.parent.mkdir()
    engine.write_text(ENGINE.format(log=log, python="python3"))
    engine.chmod(engine.stat().st_mode | stat.S_IXUSR)
    (tmp_path / "milcore").mkdir()
    (tmp_path / "milcore/__init__.py").write_text('__version__ = "9.9"\n')
    monkeypatch.setenv("PATH", f"{engine.parent}:/usr/bin:/bin")
    monkeypatch.setattr(build, "ROOT", tmp_path)
    base = f"python@sha256:{'a' * 64}"
    assert build.main(["--base", base, "--lock", "cuda.lock"]) == 0
    asked = log.read_text()
    assert f"--build-arg BASE={base} --build-arg LOCK=cuda.lock" in asked
    bill = json.loads((tmp_path / "build/milcore-9.9.cdx.json").read_text())
    assert bill["components"]
    assert "build/milcore-9.9.cdx.json" in capfd.readouterr().out


def record(**changed: Any) -> dict[str, Any]:
    events = [{"introduced": "0"}, {"fixed": "1.2"}, {"introduced": "2.0"}, {"last_affected": "2.3"}]
    affected = {
        "package": {"ecosystem": "PyPI", "name": "Py_YAML"},
        "ranges": [{"type": "ECOSYSTEM", "events": events}],
    }
    return {"id": "X-1", "summary": "bad", "affected": [affected | changed]}


@pytest.mark.parametrize(
    ("version", "affected"),
    [("0.1", True), ("1.1+cpu", True), ("1.2", False), ("1.9", False), ("2.0", True), ("2.3", True), ("2.3.1", False)],
)
def test_a_version_is_affected_inside_the_ranges_of_an_advisory(version: str, affected: bool) -> None:
    found = list(script("advisories").findings(record(), {"py-yaml": version}))
    assert found == ([f"py-yaml {version}: X-1: bad; fixed in 1.2"] if affected else [])


@pytest.mark.parametrize(
    ("changed", "affected"),
    [
        ({"ranges": [], "versions": ["2004d", "1.0"]}, True),
        ({"ranges": [], "versions": ["1.0.1"]}, False),
        ({"package": {"ecosystem": "npm", "name": "py-yaml"}}, False),
        ({"package": {"ecosystem": "PyPI", "name": "other"}}, False),
        ({"ranges": [{"type": "GIT", "events": [{"introduced": "0"}]}]}, False),
    ],
)
def test_other_forms_of_an_advisory(changed: dict[str, Any], affected: bool) -> None:
    assert bool(list(script("advisories").findings(record(**changed), {"py-yaml": "1.0"}))) == affected


def test_an_advisory_that_was_withdrawn_applies_to_nothing() -> None:
    assert list(script("advisories").findings(record() | {"withdrawn": "2026"}, {"py-yaml": "1.0"})) == []


@pytest.mark.parametrize("form", ["one", "list", "lines", "zip"])
@pytest.mark.parametrize(("version", "code"), [("1.0", 1), ("1.5", 0)])
def test_advisories_are_read_from_a_file_in_any_form(
    tmp_path: Path, form: str, version: str, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    text = json.dumps(record())
    lock, file = tmp_path / "lock", tmp_path / "osv"
    lock.write_text(f"Py.YAML=={version} \\\n    --hash=sha256:ab\n")
    if form == "zip":
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("X-1.json", text)
    else:
        file.write_text({"one": text, "list": f"[{text}]", "lines": f"{text}\n{text}\n"}[form])
    assert script("advisories").main([str(file), "--lock", str(lock)]) == code
    assert f"1 packages, {1 + (form == 'lines')} advisories" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("", "expected records of OSV, got none"),
        ("[]", "expected records of OSV, got none"),
        ("no JSON", "expected JSON, got something else"),
        ('{"x": 1}', "expected records of OSV with an id"),
        ('{"id": "X", "affected": [1]}', "X: expected a record of OSV, got another form"),
        (None, "expected a file, got No such file or directory"),
    ],
)
def test_a_file_that_holds_no_advisories_is_one_line(
    tmp_path: Path, content: str | None, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """An empty answer would say that all is well."""
    if content is not None:
        (tmp_path / "osv").write_text(content)
    assert script("advisories").main([str(tmp_path / "osv")]) == 2
    (shown,) = capsys.readouterr().err.splitlines()
    assert line in shown
