"""Check of the packages that are here against those that milcore asks for."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from milcore.cluster.doctor.finding import Finding, failure, ok, warning

INSTALL = "pip install --constraint constraints.txt --editable . in a checkout"
CONSTRAINTS = Path(__file__).resolve().parents[3] / "constraints.txt"
DISTRIBUTION = "milcore"


def package_findings() -> Iterator[Finding]:
    """Check the packages of this environment."""
    try:
        requirements = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        text = "milcore runs from a folder, not as a package: versions are not compared"
        yield warning("packages", text, INSTALL)
        return
    pins = parse_pins(CONSTRAINTS.read_text()) if CONSTRAINTS.is_file() else {}
    yield from version_findings(requirements, version_of, pins)


def version_of(name: str) -> str | None:
    """Version of a package that is here; None where it is not."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def parse_pins(text: str) -> dict[str, str]:
    """Versions by package of a file of constraints."""
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    pins = (line.split("==", 1) for line in lines if "==" in line)
    return {canonicalize_name(name): version for name, version in pins}


def version_findings(
    requirements: Sequence[str], version: Callable[[str], str | None], pins: Mapping[str, str]
) -> Iterator[Finding]:
    """Compare versions with requirements and pins.

    Args:
        requirements: of milcore, as its metadata has them; those of extras are left out.
        version: of a package; None where it is not here.
        pins: versions that the tests ran with.
    """
    needed = [each for each in map(Requirement, requirements) if each.marker is None or each.marker.evaluate()]
    others = list[str]()
    has_failed = False
    for requirement in needed:
        name = canonicalize_name(requirement.name)
        here = version(name)
        if here is None or not requirement.specifier.contains(here, prereleases=True):
            has_failed = True
            text = f"{name}: expected {requirement.specifier or 'any version'}, got {here or 'none'}"
            yield failure("packages", text, INSTALL)
        elif name in pins and here.partition("+")[0] != pins[name].partition("+")[0]:
            others.append(f"{name} {here} ({pins[name]})")
    if others:
        text = f"other versions than the tests ran with (in brackets): {', '.join(others)}"
        yield warning("packages", text, f"if something fails: {INSTALL}")
    elif not has_failed:
        tail = ", as the tests ran with" if pins else ""
        yield ok("packages", f"{len(needed)} required packages of allowed versions{tail}")
