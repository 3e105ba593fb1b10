"""The image as a pod runs it: numeric user, no capabilities, read-only root file system, a writable /tmp."""

import json

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


def test_what_steps_and_ray_nodes_start_with_is_there(engine: Engine) -> None:
    program = "import kfp.dsl.executor_main, milcore.cluster.rayjob, pipeline, ray; print(ray.__version__)"
    assert engine.run("python", "-c", program).returncode == 0
    assert engine.run("ray", "--version").returncode == 0
