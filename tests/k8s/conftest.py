"""Custom resources against KubeRay's schemas, unknown keys refused; pods against the PodSecurity level restricted."""

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


BIND = {"NET_BIND_SERVICE"}
VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}


def violations(pod: dict[str, Any]) -> list[str]:
    """Violations of the PodSecurity level restricted in a pod's spec."""
    violated = [name for name in ("hostNetwork", "hostPID", "hostIPC") if pod.get(name)]
    volumes = pod.get("volumes", [])
    violated += [f"volume {volume['name']}" for volume in volumes if not volume.keys() - {"name"} <= VOLUMES]
    of_pod = pod.get("securityContext", {})
    violated += ["sysctls"] if of_pod.get("sysctls") else []
    for container in [*pod["containers"], *pod.get("initContainers", [])]:
        security = {**of_pod, **container.get("securityContext", {})}
        capabilities = security.get("capabilities", {})
        kept = {
            "privileged": not security.get("privileged"),
            "allowPrivilegeEscalation": security.get("allowPrivilegeEscalation") is False,
            "capabilities": "ALL" in capabilities.get("drop", []) and set(capabilities.get("add", [])) <= BIND,
            "runAsNonRoot": security.get("runAsNonRoot") is True,
            "runAsUser": security.get("runAsUser") != 0,
            "seccompProfile": security.get("seccompProfile", {}).get("type") in {"RuntimeDefault", "Localhost"},
            "hostPort": not [port for port in container.get("ports", []) if port.get("hostPort")],
            "procMount": security.get("procMount", "Default") == "Default",
            "seLinuxOptions": "seLinuxOptions" not in security,
        }
        violated += [f"{container['name']}: {name}" for name, holds in kept.items() if not holds]
    return violated


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
