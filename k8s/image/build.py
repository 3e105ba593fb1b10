"""``make engine``, ``make image`` and ``make image-archive``: find or install a container engine, build, save.

The standard library only. The build sees packages where this machine's pip does: podman mounts pip's configuration, the
certificates and the folders that the configuration names, read-only; the image holds none of them. Where no registry
answers, ``--stand-in-base`` makes the base image from Debian's own packages.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CONF = HERE / "containers.conf"
BASE = "docker.io/library/python:3.11-slim"
# where a kubelet looks for a name without a registry, and an engine too but podman for what it has built itself
LIBRARY = BASE.rpartition("/")[0]
PACKAGES = ("podman", "runc", "netavark", "aardvark-dns", "debootstrap", "iptables", "iproute2", "catatonit")
CERTIFICATES = "/etc/ssl/certs"
LISTS = ("find-links", "extra-index-url", "index-url")


class BuildError(Exception):
    """Something is missing; the message says what to do."""


def main(arguments: Sequence[str]) -> int:
    """Build, or only find an engine; the exit code."""
    given = _parser().parse_args(arguments)
    try:
        engine = find_engine(install=given.install)
        if given.stand_in_base:
            make_base(engine, given.base)
            start_one(engine, given.base)
        if given.archive:
            path = ROOT / "build" / f"{image_tag().replace(':', '-')}.tar"
            save(engine, path)
            print(f"{path}: {', '.join(archive_names(path))}")
        elif not given.engine_only:
            tag = build(engine, given.torch_index, given.base, given.lock)
            print(f"its packages: {write_sbom(engine, tag)}")
    except BuildError as error:
        print(f"image: {error}", file=sys.stderr)
        return 2
    return 0


def find_engine(*, install: bool) -> str:
    """Name of an engine that works here; as root, podman is installed from the distribution if need be.

    Raises:
        BuildError: none works.
    """
    for name in ("podman", "docker"):
        if shutil.which(name) and _works(name):
            return name
    if install and os.geteuid() == 0 and shutil.which("apt-get"):
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for command in (["update"], ["install", "-y", "--no-install-recommends", *PACKAGES]):
            subprocess.run(["apt-get", "-qq", *command], check=False, env=environment, stdout=subprocess.DEVNULL)
        if shutil.which("podman") and _works("podman"):
            return "podman"
    raise BuildError(f"no container engine works here; install podman (as root: apt-get install {' '.join(PACKAGES)})")


def make_base(engine: str, base: str) -> None:
    """A stand-in for the base image, unless it is there or can be pulled: Debian with Python 3.11, by debootstrap.

    Raises:
        BuildError: it is another base than the default, whose place nothing takes, not root, or no debootstrap.
    """
    if _engine(engine, "image", "inspect", base, check=False) or _engine(engine, "pull", "-q", base, check=False):
        return
    if base != BASE:
        raise BuildError(f"{base} can neither be found here nor pulled; check its name and digest, and the registry")
    if os.geteuid() != 0 or shutil.which("debootstrap") is None:
        raise BuildError(
            f"{BASE} can neither be pulled nor made; give this machine a registry, or root and debootstrap"
        )
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "root")
        include = "--include=ca-certificates,python3,python3-venv,python3-pip"
        subprocess.run(["debootstrap", "--variant=minbase", include, "bookworm", root], check=True, stdout=sys.stderr)
        (root / "usr/lib/python3.11/EXTERNALLY-MANAGED").unlink(missing_ok=True)
        (root / "usr/local/bin/python").symlink_to("/usr/bin/python3")
        for left in ("var/cache/apt", "var/lib/apt/lists"):
            shutil.rmtree(root / left)
        archive = Path(folder, "base.tar")
        subprocess.run(["tar", "-C", root, "-cf", archive, "."], check=True)
        _engine(engine, "import", str(archive), BASE)


def start_one(engine: str, base: str) -> None:
    """Start a container of the base image and let it end.

    Raises:
        BuildError: it does not start.
    """
    if not _engine(engine, "run", "--rm", base, "true", check=False):
        raise BuildError(f"{engine} is here but starts no container; try: {engine} run --rm {base} true")


def image_tag() -> str:
    """``milcore:<version>``."""
    source = (ROOT / "milcore" / "__init__.py").read_text()
    version = re.search(r'^__version__ = "(.+)"', source, re.MULTILINE)[1]  # type: ignore[index]
    return f"milcore:{version}"


def save(engine: str, path: Path) -> None:
    """Write the image as an archive that names it as a kubelet does.

    Raises:
        BuildError: it is not there.
    """
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)  # podman adds to an archive that is there
    kind = ["--format=docker-archive"] if engine == "podman" else []
    if not _engine(engine, "save", *kind, f"--output={path}", f"{LIBRARY}/{image_tag()}", check=False, quiet=False):
        raise BuildError(f"{LIBRARY}/{image_tag()} cannot be saved; run `make image` first")


def archive_names(path: Path) -> list[str]:
    """Names of the images in an archive, in full, as containerd reads them."""
    with tarfile.open(path) as archive:
        manifest = archive.extractfile("manifest.json").read()  # type: ignore[union-attr]
        tags = [tag for image in json.loads(manifest) for tag in image["RepoTags"] or []]
    return [tag if "/" in tag else f"{LIBRARY}/{tag}" for tag in tags]


def build(engine: str, torch_index: str, base: str, lock: str) -> str:
    """Build ``milcore:<version>`` and say its size and how long it took; its tag.

    Raises:
        BuildError: the build fails.
    """
    began, tag = time.monotonic(), image_tag()
    version = tag.partition(":")[2]
    with tempfile.TemporaryDirectory() as folder:
        surroundings = _surroundings(Path(folder)) if engine == "podman" else []
        named = ["--file", str(HERE / "Dockerfile"), "--tag", tag, "--tag", f"{LIBRARY}/{tag}"]
        told = {"VERSION": version, "TORCH_INDEX": torch_index, "BASE": base, "LOCK": lock}
        arguments = [part for name, value in told.items() for part in ("--build-arg", f"{name}={value}")]
        command = ["build", *surroundings, *named, *arguments, str(ROOT)]
        if not _engine(engine, *command, check=False, quiet=False):
            raise BuildError("the build failed; its reason stands above")
    size = subprocess.run([engine, "image", "inspect", "--format", "{{.Size}}", tag], env=environment(engine),
                          capture_output=True, text=True, check=True).stdout  # fmt: skip
    print(f"{tag}: {int(size) / 1e9:.2f} GB, built in {time.monotonic() - began:.0f} s")
    return tag


def write_sbom(engine: str, tag: str) -> Path:
    """Write the bill of materials of an image, which the image itself lists; its path.

    Raises:
        BuildError: the image does not list its packages.
    """
    command = [engine, "run", "--rm", "--interactive", "--network=none", tag, "python", "-"]
    script = (HERE / "sbom.py").read_text()
    ended = subprocess.run(
        command, env=environment(engine), input=script, stdout=subprocess.PIPE, text=True, check=False
    )
    if ended.returncode:
        raise BuildError(f"{tag} does not list its packages; its reason stands above")
    path = ROOT / "build" / f"{tag.replace(':', '-')}.cdx.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(ended.stdout)
    return path


def environment(engine: str) -> dict[str, str]:
    """The environment of the engine: podman as root gets a configuration that works without systemd."""
    wanted = engine == "podman" and os.geteuid() == 0 and "CONTAINERS_CONF" not in os.environ
    return {**os.environ, **({"CONTAINERS_CONF": str(CONF)} if wanted else {})}


def _works(engine: str) -> bool:
    return _engine(engine, "info", check=False)


def _engine(engine: str, *arguments: str, check: bool = True, quiet: bool = True) -> bool:
    sink = subprocess.DEVNULL if quiet else sys.stderr
    ended = subprocess.run([engine, *arguments], env=environment(engine), check=check, stdout=sink,
                           stderr=subprocess.DEVNULL if quiet else None)  # fmt: skip
    return ended.returncode == 0


def _surroundings(folder: Path) -> list[str]:
    """Flags that let the build find packages where this machine's pip finds them."""
    settings = _pip_settings()
    (folder / "pip.conf").write_text("\n".join(["[global]", *(f"{key} = {value}" for key, value in settings.items())]))
    named = " ".join(settings.get(key, "") for key in (*LISTS, "constraint", "cert")).split()
    places = [place.removeprefix("file://") for place in named]
    roots = {place.removesuffix("/simple") for place in places if Path(place).is_absolute() and Path(place).exists()}
    roots = {place for place in roots if not place.startswith(CERTIFICATES)}
    mounts = {
        str(folder / "pip.conf"): "/etc/pip.conf",
        **{place: place for place in roots},
        CERTIFICATES: CERTIFICATES,
    }
    return [
        "--pull=missing",
        "--network=host",
        *(f"--volume={a}:{b}:ro" for a, b in mounts.items() if Path(a).exists()),
    ]


def _pip_settings() -> dict[str, str]:
    """What pip is told here by its files and by the environment."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False
    )
    found = re.findall(r"^(?:global|:env:)\.\.?([\w-]+)='(.*)'$", listed.stdout, re.MULTILINE)
    return {key: value.replace("\\n", " ") for key, value in found}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--install", action="store_true", help="as root, install podman where no engine works")
    parser.add_argument("--engine-only", action="store_true", help="only see to an engine")
    parser.add_argument("--archive", action="store_true", help="save the image that is there instead of building it")
    parser.add_argument("--stand-in-base", action="store_true", help="make the base image where it cannot be pulled")
    parser.add_argument("--torch-index", default="", help="extra package index with the lock's build of torch")
    parser.add_argument("--base", default=BASE, help="base image, best by digest: name@sha256:…")
    parser.add_argument(
        "--lock", default="k8s/image/requirements.lock", help="what to install, a path in the repository"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
