"""What README.md, CONTRIBUTING.md and docs/ say is so: commands, flags, targets, files, links; snippets run."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from milcore.cli.main import app
from tests.pipeline.conftest import StandIn, api

__all__ = ["api"]  # a fixture is found by its name in the module

ROOT = Path(__file__).resolve().parents[1]
PATHS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "k8s/README.md", *sorted((ROOT / "docs").rglob("*.md"))]
DOCUMENTS = {str(path.relative_to(ROOT)): path.read_text() for path in PATHS}
# a command goes on behind a backslash
COMMAND_LINES = sorted(
    set(re.findall(r"^milcore \w+.*", "\n".join(DOCUMENTS.values()).replace("\\\n", ""), re.MULTILINE))
)
TREE = DOCUMENTS["docs/extending.md"]


def blocks(text: str, language: str) -> list[str]:
    fences = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [content for marked, content in fences if marked == language]


def test_the_readme_is_what_a_stranger_reads_in_five_minutes() -> None:
    assert DOCUMENTS["README.md"].count("\n") < 150


def test_the_snippet_submits_the_pipeline(api: str, tmp_path: Path) -> None:
    (snippet,) = blocks(DOCUMENTS["docs/cluster.md"], "python")
    program = snippet.replace("http://localhost:8080", api)
    ended = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True, text=True, check=False, cwd=ROOT, env={**os.environ, "HOME": str(tmp_path)},
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.split()[-1] == "r1"
    (run,) = StandIn.runs
    assert run["runtime_config"]["parameters"]["ray_address"] == "http://milcore-head-svc:8265"


@pytest.mark.parametrize("command", sorted({line.split()[1] for line in COMMAND_LINES}))
def test_a_command_shown_is_there_and_takes_the_flags_shown(command: str) -> None:
    shown = CliRunner().invoke(app, [command, "--help"])
    assert shown.exit_code == 0
    for line in COMMAND_LINES:
        if line.split()[1] == command:
            for flag in re.findall(r"--[a-z-]+", line.partition("#")[0]):
                assert flag in shown.output, line


def test_every_command_of_the_program_stands_in_the_readme_and_no_other() -> None:
    rows = re.findall(r"^\| `milcore (\w+) ", DOCUMENTS["README.md"], re.MULTILINE)
    shown = CliRunner().invoke(app, ["--help"]).output.partition("Commands:")[2]
    assert sorted(rows) == sorted(re.findall(r"^  (\w+) ", shown, re.MULTILINE))


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_make_target_shown_is_in_the_makefile(name: str) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"(?:^|`)make ([\w-]+)", DOCUMENTS[name], re.MULTILINE):
        assert f"\n{target}:" in makefile, target


def test_every_file_and_folder_of_the_tree_is_there() -> None:
    tree = next(block for block in blocks(TREE, "") if block.startswith("pipeline/"))
    folders = [ROOT]
    for line in tree.splitlines():
        place, _, rest = line.strip().partition(" ")
        depth = (len(line) - len(line.lstrip())) // 2
        folders = [*folders[: depth + 1], folders[depth] / place]
        assert folders[-1].exists(), line
        for file in re.findall(r"\b(\w+\.py)\b", rest):
            assert (folders[-1] / file).exists(), line


def test_every_room_of_milcore_stands_in_the_tree() -> None:
    tree = next(block for block in blocks(TREE, "") if block.startswith("pipeline/"))
    for path in (ROOT / "milcore").iterdir():
        if not path.name.startswith("_") and path.name != "py.typed":
            assert f"  {path.name}{'/' if path.is_dir() else ''} " in tree, path.name


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_path_of_the_repository_named_exists(name: str) -> None:
    for place in re.findall(r"`((?:milcore|components|pipeline|tests|benchmarks|docs|k8s)/[\w/.-]*)`", DOCUMENTS[name]):
        assert (ROOT / place).exists(), place


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_link_leads_to_a_file_or_a_label(name: str) -> None:
    labels = set(re.findall(r"^\(([\w-]+)\)=$", "\n".join(DOCUMENTS.values()), re.MULTILINE))
    for target in re.findall(r"\]\(([^)#:\s]+)(?:#[\w-]+)?\)", DOCUMENTS[name]):
        assert target in labels or (ROOT / name).parent.joinpath(target).exists(), target
