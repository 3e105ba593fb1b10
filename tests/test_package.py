"""``import milcore``: the public names, imported when they are first used."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import milcore
from milcore.config import Config, with_settings
from tests import stub

STUB = Path(milcore.__file__).with_suffix(".pyi")
PUBLIC = sorted(set(dir(milcore)) - {"__version__"})


class Wider(Config):
    """A config with one setting."""

    added: int | None = 3


@with_settings(config=Wider)
def train(*, config: Wider) -> None:
    """Train."""


def test_the_stub_is_the_one_that_the_verbs_and_configs_make() -> None:
    """`python -m tests.stub` writes it."""
    assert STUB.read_text() == stub.text()


def test_the_stub_names_what_is_there_at_run_time_from_the_same_modules() -> None:
    tree = ast.parse(STUB.read_text())
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    named = {alias.asname: node.module for node in imports for alias in node.names if alias.asname}
    verbs = {node.name: milcore._HOME[node.name] for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert named | verbs == milcore._HOME


def test_a_setting_that_is_new_changes_the_stub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(milcore, "train", train, raising=False)
    assert "added: int | None = 3" in stub.text()


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
