"""The notebook of first steps runs and shows the output of a run; `make lint` checks its types."""

import getpass
import re
import socket
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = ROOT / "docs/notebook.py"
PLACES = re.compile(r"/(?:home|root|tmp|work|Users|var|private)/")


def read(path: Path) -> list[NotebookNode]:
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def kinds(cell: NotebookNode) -> list[list[str]]:
    """What a cell shows: the forms of each of its outputs."""
    return [sorted(output.get("data", {output.get("name"): ""})) for output in cell.outputs]


def texts(cell: NotebookNode) -> list[str]:
    data = [text for output in cell.outputs for kind, text in output.get("data", {}).items() if "image" not in kind]
    return [*data, *(output.text for output in cell.outputs if output.output_type == "stream")]


COMMITTED = read(ROOT / "docs/first_steps.ipynb")


@pytest.mark.long
def test_it_runs_and_shows_what_is_committed(tmp_path: Path) -> None:
    """Values may differ by processor in the last decimals; a cell's kinds of output may not."""
    out = tmp_path / "first_steps.ipynb"
    ended = subprocess.run(
        [sys.executable, PROGRAM, "run", "--out", out], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert ended.returncode == 0, ended.stderr
    executed = read(out)
    assert [cell.source for cell in executed] == [cell.source for cell in COMMITTED]
    assert [kinds(cell) for cell in executed] == [kinds(cell) for cell in COMMITTED]


def test_every_cell_that_ends_with_a_value_shows_it() -> None:
    for cell in COMMITTED:
        last = cell.source.splitlines()[-1]
        if re.match(r"[\w.\[\]\"(), ]+$", last) and "=" not in last:
            assert cell.outputs, cell.source
    assert all(output.output_type != "error" for cell in COMMITTED for output in cell.outputs)


def test_the_output_names_no_place_user_or_host_and_shows_no_progress() -> None:
    shown = [text for cell in COMMITTED for text in texts(cell)]
    # data of a picture is base64, in which any letters may follow a slash
    shown = [re.sub(r"base64,[A-Za-z0-9+/=]+", "", text) for text in shown]
    assert shown
    names = {name for name in (getpass.getuser(), socket.gethostname()) if len(name) > 3}
    for text in shown:
        assert not PLACES.search(text), text
        assert not any(name in text for name in names), text
        assert "/s, about" not in text
        assert "\r" not in text
    assert all(output.get("name") != "stderr" for cell in COMMITTED for output in cell.outputs)


def test_the_lines_of_the_readme_stand_in_the_notebook() -> None:
    (block,) = re.findall(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    lines = [line.partition("  #")[0] for line in block.splitlines() if line]
    executed = [line for cell in COMMITTED for line in cell.source.splitlines()]
    assert lines[0] == "import milcore as mc"
    assert [line for line in lines if line not in executed] == []
