"""``make advisories FILE=…``: known vulnerabilities of what the image installs, from a file of advisories.

The file holds records of OSV, the format in which advisories of Python packages are published: one JSON object, a
list, one object a line, or a zip archive of JSON files. Nothing is asked over the network: the file's age is the
answer's.

Source: OSV schema 1.7, "affected" and "evaluation"; of ranges ECOSYSTEM is read, GIT is not.
"""

import argparse
import json
import re
import sys
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from packaging.version import InvalidVersion, Version

LOCK = Path(__file__).resolve().parent / "requirements.lock"


class AdvisoryError(Exception):
    """A file cannot be used; the message says why."""


def main(arguments: Sequence[str]) -> int:
    """Print what is known; 1 where a package is vulnerable, 2 where a file is unusable, else 0."""
    parser = argparse.ArgumentParser(description="known vulnerabilities of what the image installs")
    parser.add_argument("file", type=Path, help="records of OSV: JSON, JSON lines, or a zip of JSON files")
    parser.add_argument("--lock", type=Path, default=LOCK, help="what the image installs")
    given = parser.parse_args(arguments)
    try:
        packages = locked(given.lock)
        records = list(read_records(given.file))
        found = sorted(line for record in records for line in findings(record, packages))
    except AdvisoryError as error:
        print(f"advisories: {error}", file=sys.stderr)
        return 2
    for line in found:
        print(line)
    print(f"{len(packages)} packages, {len(records)} advisories, {len(found)} that apply")
    return 1 if found else 0


def locked(path: Path) -> dict[str, str]:
    """Versions by name in a file of pinned requirements.

    Raises:
        AdvisoryError: it pins nothing.
    """
    pins = dict(re.findall(r"^([\w.-]+)==([^\s\\;]+)", _read(path).decode(errors="replace"), re.MULTILINE))
    if not pins:
        raise AdvisoryError(f"{path}: expected lines name==version, got none; make it by `make lock`")
    return {_canonical(name): version for name, version in pins.items()}


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """Records of a file.

    Raises:
        AdvisoryError: it holds anything else, or nothing.
    """
    count = 0
    for name, data in _contents(path):
        for record in _parse(name, data):
            if not isinstance(record, dict) or not isinstance(record.get("affected", []), list) or "id" not in record:
                raise AdvisoryError(f"{name}: expected records of OSV with an id, got {str(record)[:60]!r}")
            count += 1
            yield record
    if not count:
        raise AdvisoryError(f"{path}: expected records of OSV, got none; an empty answer would say that all is well")


def findings(record: dict[str, Any], packages: dict[str, str]) -> Iterator[str]:
    """A line per package that a record applies to; none of one that was withdrawn.

    Raises:
        AdvisoryError: the record is not in the form of OSV.
    """
    if record.get("withdrawn"):
        return
    try:
        for affected in record.get("affected", []):
            package = affected.get("package", {})
            name = _canonical(str(package.get("name", "")))
            if package.get("ecosystem") == "PyPI" and name in packages and is_affected(affected, packages[name]):
                fixes = sorted({version for _, version in _events(affected, "fixed")})
                remedy = f"fixed in {', '.join(fixes)}" if fixes else "no fix is named"
                yield f"{name} {packages[name]}: {record['id']}: {record.get('summary') or 'no summary'}; {remedy}"
    except (AttributeError, KeyError, TypeError, InvalidVersion) as error:
        raise AdvisoryError(f"{record['id']}: expected a record of OSV, got another form ({error})") from None


def is_affected(affected: dict[str, Any], version: str) -> bool:
    """True for a version that an entry of a record lists, or that lies in one of its ranges.

    The local part of a version, such as ``+cpu``, does not count.
    """
    here = Version(Version(version).public)
    if any(_is_same(listed, here) for listed in affected.get("versions", [])):
        return True
    return any(_in_range(one["events"], here) for one in affected.get("ranges", []) if one["type"] == "ECOSYSTEM")


def _in_range(events: list[dict[str, str]], version: Version) -> bool:
    """True where the last event up to a version opens a range that no event closes."""
    inside = False
    for event in sorted(events, key=lambda event: _version(next(iter(event.values())))):
        if "introduced" in event:
            inside = inside or version >= _version(event["introduced"])
        elif "fixed" in event:
            inside = inside and version < _version(event["fixed"])
        elif "last_affected" in event:
            inside = inside and version <= _version(event["last_affected"])
    return inside


def _events(affected: dict[str, Any], name: str) -> Iterator[tuple[str, str]]:
    for one in affected.get("ranges", []):
        yield from ((name, event[name]) for event in one["events"] if one["type"] == "ECOSYSTEM" and name in event)


def _is_same(listed: str, version: Version) -> bool:
    """True where a listed version is this one; early releases of some packages have none that can be compared."""
    try:
        return _version(listed) == version
    except InvalidVersion:
        return False


def _version(text: str) -> Version:
    """A version; ``0``, OSV's beginning of all versions, is before every other."""
    return Version("0.dev0") if text == "0" else Version(text)


def _contents(path: Path) -> Iterator[tuple[str, bytes]]:
    if not zipfile.is_zipfile(path):
        yield str(path), _read(path)
        return
    with zipfile.ZipFile(path) as archive:
        yield from ((f"{path}/{name}", archive.read(name)) for name in archive.namelist() if name.endswith(".json"))


def _parse(name: str, data: bytes) -> list[Any]:
    """JSON values of a text: of a list, of one object, or of a line each."""
    try:
        value = json.loads(data)
        return value if isinstance(value, list) else [value]
    except ValueError:
        pass
    try:
        return [json.loads(line) for line in data.splitlines() if line.strip()]
    except ValueError as error:
        raise AdvisoryError(f"{name}: expected JSON, got something else ({error})") from None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise AdvisoryError(f"{path}: expected a file, got {error.strerror}; check its path") from None


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
