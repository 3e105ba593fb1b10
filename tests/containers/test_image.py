"""The image as a pod runs it: numeric user, no capabilities, read-only root file system, a writable /tmp."""

import json
import re
from pathlib import Path

import milcore
from tests.containers.conftest import Engine, load_build

ROOT = Path(__file__).resolve().parents[2]


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


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


def test_the_archive_names_the_image_as_a_kubelet_looks_for_it(engine: Engine) -> None:
    """Podman's own name for what it has built begins with localhost, which no kubelet asks for."""
    build = load_build()
    tag = f"milcore:{milcore.__version__}"
    assert build.archive_names(ROOT / "build" / f"milcore-{milcore.__version__}.tar") == [f"{build.LIBRARY}/{tag}"]
    assert engine("image", "inspect", f"{build.LIBRARY}/{tag}", check=False).returncode == 0


def test_every_module_of_ours_imports_from_what_the_image_kept_of_its_packages(engine: Engine) -> None:
    ended = engine.run("python", "-c", IMPORT_ALL)
    assert ended.returncode == 0, ended.stderr
    assert engine.run("ray", "--version").returncode == 0


def test_what_is_installed_is_the_lock_and_the_bill_of_materials_lists_it(engine: Engine) -> None:
    locked = re.findall(r"^(\S+)==(\S+)", (ROOT / "k8s/image/requirements.lock").read_text(), re.MULTILINE)
    freeze = engine.run("python", "-m", "pip", "list", "--format=freeze", "--exclude=milcore").stdout
    installed = [(canonical(name), version) for name, version in re.findall(r"^(\S+)==(\S+)", freeze, re.MULTILINE)]
    # what the base brings besides
    assert sorted(set(installed) - set(locked)) == [one for one in sorted(installed) if one[0] in {"pip", "wheel"}]
    assert set(locked) <= set(installed)
    bill = json.loads((ROOT / f"build/milcore-{milcore.__version__}.cdx.json").read_text())
    listed = {(one["name"], one["version"]) for one in bill["components"] if one["purl"].startswith("pkg:pypi/")}
    assert {*locked, ("milcore", milcore.__version__)} <= listed
    assert any(one["purl"].startswith("pkg:deb/debian/base-files@") for one in bill["components"])
