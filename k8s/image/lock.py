"""``make lock``: write what the image installs, every package with its version and sha256.

pip chooses by ``pyproject.toml`` and ``constraints.txt``, from wherever it is configured to look, and reports files;
nothing is installed. A lock is for the machine and the Python that it was made on, which are the image's: Linux on
x86_64 and Python 3.11. The standard library only.
"""

import argparse
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
LOCK = HERE / "requirements.lock"
# of the image, which serves predictions too
EXTRAS = ("serve",)
HEAD = """\
# What the image installs, by `make lock` out of pyproject.toml and constraints.txt; not for editing.
# For Linux on x86_64 and Python 3.11, with torch for CPUs.
"""


class LockError(Exception):
    """There is no lock; the message says why."""


def main(arguments: Sequence[str]) -> int:
    """Write the lock; the exit code."""
    parser = argparse.ArgumentParser(description="write k8s/image/requirements.lock")
    parser.add_argument("--torch-index", default="", help="extra package index with CPU or CUDA builds of torch")
    parser.add_argument("--out", type=Path, default=LOCK, help="file to write")
    given = parser.parse_args(arguments)
    try:
        given.out.write_text(HEAD + "".join(lines(report(given.torch_index))))
    except LockError as error:
        print(f"lock: {error}", file=sys.stderr)
        return 2
    print(f"{given.out}: {given.out.read_text().count('==')} packages")
    return 0


def requirements() -> list[str]:
    """What the image needs: the dependencies, and those of its extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return [*project["dependencies"], *(each for name in EXTRAS for each in project["optional-dependencies"][name])]


def report(torch_index: str) -> list[dict[str, Any]]:
    """Files that pip would install into an empty environment.

    Raises:
        LockError: pip finds no set of packages.
    """
    needed = requirements()
    options = ["--dry-run", "--ignore-installed", "-qq", "--report", "-", "--constraint", ROOT / "constraints.txt"]
    index = ["--extra-index-url", torch_index] if torch_index else []
    command = [sys.executable, "-m", "pip", "install", *options, *index, *needed]
    ended = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True)
    if ended.returncode:
        raise LockError("pip finds no set of packages; its reason stands above")
    chosen: list[dict[str, Any]] = json.loads(ended.stdout)["install"]
    return chosen


def lines(chosen: Iterable[dict[str, Any]]) -> list[str]:
    """A requirement with its hash per package, by name.

    Raises:
        LockError: pip knows no sha256 of a file.
    """
    rows = []
    for package in chosen:
        name = re.sub(r"[-_.]+", "-", package["metadata"]["name"]).lower()
        sha256 = package["download_info"].get("archive_info", {}).get("hashes", {}).get("sha256")
        if sha256 is None:
            raise LockError(f"{name}: expected a file with a sha256, got {package['download_info']['url']}")
        rows.append(f"{name}=={package['metadata']['version']} \\\n    --hash=sha256:{sha256}\n")
    return sorted(rows)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
