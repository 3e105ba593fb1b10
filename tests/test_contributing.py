"""Where the page that CONTRIBUTING.md leads to says that a thing is in the code, it is."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs/extending.md").read_text()
ANSWERS = re.findall(r"^\| (.+?) \| `(\S+\.py)` \| `(\S+)` \|$", PAGE, re.MULTILINE)


def names_defined(path: Path) -> set[str]:
    """Functions, and methods as ``Class.method``."""
    body = ast.parse(path.read_text()).body
    methods = {
        f"{kind.name}.{node.name}"
        for kind in body
        if isinstance(kind, ast.ClassDef)
        for node in kind.body
        if isinstance(node, ast.FunctionDef)
    }
    return methods | {node.name for node in body if isinstance(node, ast.FunctionDef)}


def test_ten_questions_are_answered() -> None:
    assert len(ANSWERS) == 10


@pytest.mark.parametrize(("question", "file", "function"), ANSWERS)
def test_each_answer_is_there(question: str, file: str, function: str) -> None:
    assert (ROOT / file).exists(), f"{question}: no {file}"
    assert function in names_defined(ROOT / file), f"{question}: {file} has no {function}"


def test_a_file_or_a_function_that_is_not_there_is_noticed() -> None:
    assert "save_checkpoint" not in names_defined(ROOT / "milcore/training/loop.py")
