"""What a laptop needs that only compiles: kfp, kfp-kubernetes and pydantic, no Ray, no torch, nothing that computes."""

import importlib.metadata
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterable
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from pipeline.__main__ import PIPELINES

ROOT = Path(__file__).resolve().parents[2]
NEEDED = ("kfp", "kfp-kubernetes", "pydantic")
OURS = {"milcore", "components", "pipeline", "tests", "benchmarks"}

# the three pipelines compile, and what they compile to loads
PROGRAM = """
from kfp import components
from pipeline.__main__ import PIPELINES, main
for name in PIPELINES:
    assert main(["compile", "--pipeline", name, "--out", f"{folder}/{name}.yaml"]) == 0
    assert components.load_component_from_file(f"{folder}/{name}.yaml").name == name
    assert components.load_component_from_file(f"pipeline/{name.replace('-', '_')}.yaml").name == name
"""
BLOCK = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in absent:
            raise ModuleNotFoundError(f"{name} is not in this environment", name=name)

sys.meta_path.insert(0, Absent())
"""


def with_what_they_need(names: Iterable[str]) -> set[str]:
    """The distributions and all that they depend on here."""
    seen: set[str] = set()
    wanted = list(names)
    while wanted:
        name = canonical(wanted.pop())
        if name not in seen:
            seen.add(name)
            needs = map(Requirement, importlib.metadata.requires(name) or [])
            wanted += [its.name for its in needs if its.marker is None or its.marker.evaluate({"extra": ""})]
    return seen


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_compiling_and_loading_need_kfp_and_pydantic_only(tmp_path: Path) -> None:
    allowed = with_what_they_need(NEEDED)
    modules = importlib.metadata.packages_distributions()
    absent = {module for module, owners in modules.items() if not allowed & {canonical(its) for its in owners}} - OURS
    assert {"torch", "ray", "zarr", "numpy", "pyarrow", "fsspec", "rich", "typer"} <= absent
    program = f"folder, absent = {str(tmp_path)!r}, {absent!r}\n{BLOCK}\n{PROGRAM}"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)


@pytest.mark.long
def test_an_environment_of_its_own_compiles_and_loads(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "env"], check=True)
    python = tmp_path / "env" / "bin" / "python"
    install = [python, "-m", "pip", "install", "--quiet", "--constraint", ROOT / "constraints.txt", *NEEDED]
    subprocess.run(install, check=True)
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    absent = textwrap.dedent("""
        import importlib.util
        assert not [name for name in ("torch", "ray", "zarr", "numpy") if importlib.util.find_spec(name)]
    """)
    program = f"folder = {str(tmp_path)!r}\n{absent}\n{PROGRAM}"
    subprocess.run([python, "-c", program], check=True, cwd=ROOT, env=clean)
    for name in PIPELINES:
        committed = ROOT / "pipeline" / f"{name.replace('-', '_')}.yaml"
        made, expected = (list(yaml.safe_load_all(file.read_text())) for file in (tmp_path / f"{name}.yaml", committed))
        assert made == expected
