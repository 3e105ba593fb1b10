"""``import milcore``: the public names, imported when they are first used."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import milcore

STUB = Path(milcore.__file__).with_suffix(".pyi")
PUBLIC = sorted(set(dir(milcore)) - {"__version__"})


def test_the_stub_names_what_is_there_at_run_time_from_the_same_modules() -> None:
    tree = ast.parse(STUB.read_text())
    stub = {alias.asname: node.module for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert stub == milcore._HOME


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_is_no_room_and_lives_where_the_table_says(name: str) -> None:
    assert not (STUB.parent / name).exists(), "a subpackage, once imported, would hide it"
    assert getattr(milcore, name) is not None
    assert getattr(getattr(milcore, name), "__module__", milcore._HOME[name]) == milcore._HOME[name]


def test_importing_the_package_imports_nothing_of_weight() -> None:
    code = "import sys, milcore; print([n for n in ('torch', 'ray', 'zarr', 'kfp', 'pydantic') if n in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout == "[]\n"


def test_an_unknown_name_is_told_with_the_public_ones() -> None:
    with pytest.raises(AttributeError, match=r"has no attribute .trian.; public names: .*train"):
        milcore.trian  # noqa: B018
