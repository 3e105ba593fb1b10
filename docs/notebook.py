"""The notebook of first steps: execute it anew, or export its code.

``python docs/notebook.py run`` executes it in an empty folder and keeps the output in the notebook, as the site shows
it, or in ``--out FILE``. ``python docs/notebook.py export FILE`` writes its code as a script. Progress, the numbers of
executions, the folder's path and pictures in a second form are left out of what is kept.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

NOTEBOOK = Path(__file__).with_name("first_steps.ipynb")
CELL_TIMEOUT_S = 600


def main(arguments: Sequence[str]) -> int:
    """Run a command of this file; the exit code."""
    parser = argparse.ArgumentParser(description="docs/first_steps.ipynb")
    commands = parser.add_subparsers(required=True, dest="command")
    run = commands.add_parser("run", help="execute it in an empty folder")
    run.add_argument("--out", type=Path, default=NOTEBOOK, help="notebook to write")
    export = commands.add_parser("export", help="write its code as a script")
    export.add_argument("file", type=Path)
    given = parser.parse_args(arguments)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    if given.command == "run":
        nbformat.write(execute(notebook), given.out)
    else:
        given.file.parent.mkdir(parents=True, exist_ok=True)
        given.file.write_text(script(notebook))
    return 0


def execute(notebook: NotebookNode) -> NotebookNode:
    """Execute a notebook in an empty folder and leave out what another run would not repeat."""
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(notebook, timeout=CELL_TIMEOUT_S, resources={"metadata": {"path": folder}})
        client.execute(env=os.environ | {"PYTHONPATH": str(NOTEBOOK.parents[1])})  # this code, from any folder
        for cell in code_cells(notebook):
            cell.execution_count = None
            cell.metadata.pop("execution", None)
            cell.outputs = [_without_folder(output, folder) for output in cell.outputs if not _is_progress(output)]
    notebook.metadata = NotebookNode(kernelspec=notebook.metadata.kernelspec)
    return notebook


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    """The cells of code, in order."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def script(notebook: NotebookNode) -> str:
    """The code of all cells as one script."""
    return "\n\n".join(cell.source for cell in code_cells(notebook)) + "\n"


def _is_progress(output: NotebookNode) -> bool:
    return bool(output.output_type == "stream" and output.name == "stderr")


def _without_folder(output: NotebookNode, folder: str) -> NotebookNode:
    """The output with paths from the folder in which it was executed."""
    if output.output_type == "execute_result":
        output.execution_count = None
    if output.output_type == "stream":
        output.text = output.text.replace(f"{folder}/", "")
    data = output.get("data", {})
    if "image/jpeg" in data:
        data.pop("image/png", None)
    data |= {kind: text.replace(f"{folder}/", "") for kind, text in data.items() if kind.startswith("text/")}
    return output


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
