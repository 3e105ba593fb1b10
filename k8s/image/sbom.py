"""Bill of materials of the image, in CycloneDX 1.6: its Python and Debian packages.

``make image`` runs it inside the image and keeps what it prints. Equal images give equal bytes, hence neither date nor
random number. The standard library only.
"""

import importlib.metadata
import json
import re
import subprocess
import sys
import uuid
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote


def main() -> int:
    """Print the bill of materials; the exit code."""
    print(json.dumps(bill([*python_packages(), *debian_packages()]), indent=1, sort_keys=True))
    return 0


def bill(components: list[dict[str, Any]]) -> dict[str, Any]:
    """CycloneDX document of an image with these components."""
    components = sorted({component["bom-ref"]: component for component in components}.values(), key=_reference)
    content = uuid.uuid5(uuid.NAMESPACE_OID, json.dumps(components, sort_keys=True))
    version = next((one["version"] for one in components if one["bom-ref"].startswith("pkg:pypi/milcore@")), "")
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{content}",
        "version": 1,
        "metadata": {"component": {"type": "container", "name": "milcore", "version": version, "bom-ref": "image"}},
        "components": components,
    }


def python_packages() -> Iterator[dict[str, Any]]:
    """Components of the distributions that this Python finds."""
    for package in importlib.metadata.distributions():
        metadata = package.metadata
        name = re.sub(r"[-_.]+", "-", metadata["Name"]).lower()
        found = _component(name, package.version, f"pkg:pypi/{name}@{quote(package.version, safe='')}")
        expression = metadata.get("License-Expression")
        yield found | ({"licenses": [{"expression": expression}]} if expression else {})


def debian_packages() -> Iterator[dict[str, Any]]:
    """Components of the packages that dpkg lists; none on a base without it."""
    command = ["dpkg-query", "--show", "--showformat", "${Package}\t${Version}\t${Architecture}\n"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except FileNotFoundError:
        return
    for line in listed.splitlines():
        name, version, architecture = line.split("\t")
        yield _component(name, version, f"pkg:deb/debian/{name}@{quote(version, safe='')}?arch={architecture}")


def _component(name: str, version: str, purl: str) -> dict[str, Any]:
    return {"type": "library", "name": name, "version": version, "purl": purl, "bom-ref": purl}


def _reference(component: dict[str, Any]) -> str:
    return str(component["bom-ref"])


if __name__ == "__main__":
    sys.exit(main())
