"""The image as a pod runs it: numeric user, no capabilities, read-only root file system, a writable /tmp."""

import json
from pathlib import Path

from tests.containers.conftest import Engine


def test_the_command_line_answers_as_a_user_without_rights(engine: Engine) -> None:
    shown = engine.run("milcore", "--help")
    assert shown.returncode == 0, shown.stderr
    assert "Research use only" in shown.stdout
    user = engine.run("python", "-c", "import os; print(os.getuid(), os.access('/opt', os.W_OK))")
    assert user.stdout.split() == ["10001", "False"]


def test_commands_work_on_a_read_only_root(engine: Engine) -> None:
    made = engine.run("milcore", "synth", "/tmp/cohort", "--slides", "2", "--json")  # noqa: S108 - of the container
    assert made.returncode == 0, made.stderr
    assert len(json.loads(made.stdout.splitlines()[-1])["slides"]) == 2


IMPORT_ALL = """
import importlib, pkgutil
for name in ("milcore", "components", "pipeline"):
    package = importlib.import_module(name)
    for module in pkgutil.walk_packages(package.__path__, f"{name}."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
import kfp.dsl.executor_main
"""


def test_every_module_of_ours_imports_from_what_the_image_kept_of_its_packages(engine: Engine) -> None:
    ended = engine.run("python", "-c", IMPORT_ALL)
    assert ended.returncode == 0, ended.stderr
    assert engine.run("ray", "--version").returncode == 0


def test_what_is_installed_is_what_the_pins_say(engine: Engine) -> None:
    pins = (Path(__file__).resolve().parents[2] / "constraints.txt").read_text().splitlines()
    installed = engine.run("python", "-m", "pip", "freeze", "--exclude", "milcore").stdout.splitlines()
    assert {line.split("+")[0].lower() for line in installed} <= {line.split("+")[0].lower() for line in pins}
