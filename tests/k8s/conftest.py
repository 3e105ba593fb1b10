"""Custom resources against the schemas of KubeRay, with unknown keys refused."""

from pathlib import Path
from typing import Any

import pytest
import yaml

CRDS = Path(__file__).resolve().parents[3] / "shared" / "crds"


def strict(schema: dict[str, Any]) -> dict[str, Any]:
    """A CRD's schema as a JSON schema in which an unknown key is an error, not a field to drop."""
    made = dict(schema)
    if schema.get("x-kubernetes-int-or-string"):
        made.pop("type", None)
        made["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    if "properties" in schema:
        made["properties"] = {name: strict(inner) for name, inner in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            made["additionalProperties"] = False
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            made[key] = strict(schema[key])
    return made


def validator(plural: str) -> Any:
    jsonschema = pytest.importorskip("jsonschema")
    file = CRDS / f"ray.io_{plural}.yaml"
    if not file.is_file():
        pytest.skip(f"the definition of {plural} is not beside the project")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    definition = yaml.load(file.read_text(), loader)  # noqa: S506 - both are safe loaders
    (version,) = [one for one in definition["spec"]["versions"] if one["name"] == "v1"]
    return jsonschema.Draft202012Validator(strict(version["schema"]["openAPIV3Schema"]))


@pytest.fixture(scope="session")
def raycluster_schema() -> Any:
    return validator("rayclusters")


@pytest.fixture(scope="session")
def rayjob_schema() -> Any:
    return validator("rayjobs")
