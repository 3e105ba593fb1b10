"""What README.md says is so: its snippet submits, its commands and files exist."""

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
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    fences = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    return [text for marked, text in fences if marked == language]


def test_the_snippet_submits_the_pipeline(api: str, tmp_path: Path) -> None:
    (snippet,) = blocks("python")
    program = snippet.replace("http://localhost:8080", api)
    ended = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True, text=True, check=False, cwd=ROOT, env={**os.environ, "HOME": str(tmp_path)},
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.split()[-1] == "r1"
    (run,) = StandIn.runs
    assert run["runtime_config"]["parameters"]["ray_address"] == "http://milcore-head-svc:8265"


@pytest.mark.parametrize("command", sorted(set(re.findall(r"^milcore (\w+)", README, re.MULTILINE))))
def test_a_command_shown_is_there_and_takes_the_flags_shown(command: str) -> None:
    shown = CliRunner().invoke(app, [command, "--help"])
    assert shown.exit_code == 0
    for line in re.findall(rf"^milcore {command}\b.*", README, re.MULTILINE):
        for flag in re.findall(r"--[a-z-]+", line.partition("#")[0]):
            assert flag in shown.output


def test_every_make_target_shown_is_in_the_makefile() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", README, re.MULTILINE):
        assert f"\n{target}:" in makefile


def test_every_file_and_folder_of_the_tree_is_there() -> None:
    tree = next(block for block in blocks("") if block.startswith("pipeline/"))
    folders = [ROOT]
    for line in tree.splitlines():
        place, _, rest = line.strip().partition(" ")
        depth = (len(line) - len(line.lstrip())) // 2
        folders = [*folders[: depth + 1], folders[depth] / place]
        assert folders[-1].exists(), line
        for file in re.findall(r"\b(\w+\.py)\b", rest):
            assert (folders[-1] / file).exists(), line


def test_every_room_of_milcore_stands_in_the_tree() -> None:
    tree = next(block for block in blocks("") if block.startswith("pipeline/"))
    for path in (ROOT / "milcore").iterdir():
        if not path.name.startswith("_") and path.name != "py.typed":
            assert f"  {path.name}{'/' if path.is_dir() else ''} " in tree, path.name


def test_every_link_leads_to_a_file() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target
