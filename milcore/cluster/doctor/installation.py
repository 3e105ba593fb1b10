"""Checks of a Kubernetes namespace: API, KubeRay, rights, secrets, profile, room for pods."""

import os
import re
from collections.abc import Callable, Generator, Iterator
from functools import partial
from typing import Any, NamedTuple

import yaml
from kubernetes.client.exceptions import ApiException

from milcore.cluster.doctor.api_server import METADATA_ONLY, NO_ANSWER, NOT_FOUND, ApiServer, Json, guard
from milcore.cluster.doctor.autoscaler import autoscaler
from milcore.cluster.doctor.capacity import fit_finding, limit_findings, pod_sizes, quota_findings
from milcore.cluster.doctor.finding import Finding, failure, ok, warning
from milcore.cluster.doctor.launcher import APPLY, rights_findings
from milcore.cluster.doctor.pod_job import pod_findings
from milcore.cluster.jobs.profile import ClusterProfile, read_profile
from milcore.cluster.jobs.rayjob_spec import JobRequest, rayjob_spec
from milcore.cluster.jobs.rights import Right
from milcore.config import LaunchConfig, parse_config
from milcore.errors import InputError

KUBERAY = (1, 7)
OPERATOR_LABEL = "app.kubernetes.io/component=kuberay-operator"
PROFILE, PROFILE_KEY = "milcore-profile", "profile.yaml"
POLICY = "milcore-rayjob"
S3_KEYS = frozenset({"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"})
STORAGE_KEYS = frozenset({"AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION"})
RAY_KEYS = frozenset({"auth_mode", "auth_token"})


def cluster_findings(api: ApiServer, profile_uri: str, uri: str | None, wait_s: float) -> Generator[Finding]:
    """Check a cluster and a namespace, in seconds.

    Args:
        api: server and namespace.
        profile_uri: of the cluster profile; empty: that of the namespace.
        uri: of a store or run, which a pod checks, too; None: none.
        wait_s: seconds that a pod may take to start.
    """
    version = version_finding(api)
    yield version
    if version.state == "failure":
        return
    yield from guard("namespace", Right("get", "", "namespaces"), api, lambda: _namespace_findings(api))
    yield from kuberay_findings(api)
    yield from guard("rights", Right("create", "authorization.k8s.io", "selfsubjectaccessreviews"), api,
                     lambda: rights_findings(api), everywhere=True)  # fmt: skip
    findings, profile = profile_findings(api, profile_uri)
    yield from findings
    yield from _object_findings(api, profile)
    yield from _room_findings(api, profile)
    image = os.environ.get("MILCORE_IMAGE") or profile.image
    yield from pod_findings(api, _job_spec(profile, image), uri, wait_s)


def version_finding(api: ApiServer) -> Finding:
    """Ask the API for its version."""
    remedy = "see `kubectl cluster-info`; choose another context of your kubeconfig, or renew its login"
    try:
        return ok("API", f"Kubernetes {api.get('/version')['gitVersion']} at {api.host}")
    except ApiException as error:
        return failure("API", f"{api.host} answers {error.status} {error.reason}", remedy)
    except (KeyError, TypeError):
        return failure("API", f"{api.host} answers, but not as a Kubernetes API does", remedy)
    except NO_ANSWER as error:
        text = " ".join(f"{type(error).__name__}: {error}".split())
        return failure("API", f"nothing answers at {api.host} ({text})", remedy)


def _namespace_findings(api: ApiServer) -> Iterator[Finding]:
    if _get(api, f"/api/v1/namespaces/{api.namespace}") is None:
        yield failure("namespace", f"there is no namespace {api.namespace}", "make it, or name another by --namespace")
    else:
        yield ok("namespace", api.namespace)


def _get(api: ApiServer, path: str, **keywords: str) -> Any:
    """Answer of a GET; None where there is no such thing."""
    try:
        return api.get(path, **keywords)
    except ApiException as error:
        if error.status == NOT_FOUND:
            return None
        raise


def kuberay_findings(api: ApiServer) -> Iterator[Finding]:
    """Check KubeRay's resources, their fields, and its version."""
    check = "KubeRay's resources"
    group = Right("get", "", "/apis/ray.io")
    has_failed = False
    for finding in guard(check, group, api, lambda: _resource_findings(api), everywhere=True):
        has_failed = has_failed or finding.state == "failure"
        yield finding
    if not has_failed:
        yield from guard("KubeRay", Right("list", "", "pods"), api, lambda: _operator_findings(api), everywhere=True)


def _resource_findings(api: ApiServer) -> Iterator[Finding]:
    check, remedy = "KubeRay's resources", "install the KubeRay operator 1.7 with its CRDs"
    resources = _get(api, "/apis/ray.io/v1")
    names = {each["name"] for each in resources["resources"]} if resources else set()
    if absent := {"rayjobs", "rayclusters"} - names:
        yield failure(check, f"the API knows no {' and no '.join(sorted(absent))} of ray.io/v1", remedy)
        return
    schema = _rayjob_schema(_get(api, "/openapi/v3/apis/ray.io/v1"))
    if schema is None:
        yield warning(check, "rayjobs and rayclusters are there; their fields cannot be read", remedy)
        return
    spec = _job_spec(ClusterProfile(), "milcore")
    if unknown := sorted(unknown_fields(spec, schema["properties"]["spec"])):
        yield failure(check, f"an older KubeRay: its RayJob has no {', '.join(unknown)}", remedy)
    else:
        yield ok(check, "rayjobs and rayclusters of ray.io/v1, with every field that is used")


def _rayjob_schema(document: Any) -> Any:
    """Schema of a RayJob in the API's OpenAPI document; None where there is none."""
    schemas = document["components"]["schemas"] if document else {}
    kinds = {"group": "ray.io", "version": "v1", "kind": "RayJob"}
    return next((each for each in schemas.values() if kinds in each.get("x-kubernetes-group-version-kind", [])), None)


def unknown_fields(value: Any, schema: Json, path: str = "spec") -> set[str]:
    """Paths of fields that a schema does not have.

    The API drops such fields silently.
    """
    if isinstance(value, list):
        return {fault for each in value for fault in unknown_fields(each, schema.get("items", {}), path)}
    fields = schema.get("properties")
    if not isinstance(value, dict) or fields is None or schema.get("x-kubernetes-preserve-unknown-fields"):
        return set()
    unknown = {f"{path}.{name}" for name in value if name not in fields}
    known = [name for name in value if name in fields]
    return unknown.union(*(unknown_fields(value[name], fields[name], f"{path}.{name}") for name in known))


def _operator_findings(api: ApiServer) -> Iterator[Finding]:
    pods = api.get("/api/v1/pods", labelSelector=OPERATOR_LABEL)["items"]
    running = [pod for pod in pods if pod["status"].get("phase") == "Running"]
    if not running:
        text = f"{len(pods)} pod(s) with label {OPERATOR_LABEL}, none running: nobody makes clusters of RayJobs"
        yield failure("KubeRay", text, "install or start the KubeRay operator 1.7")
        return
    yield operator_finding(running[0]["spec"]["containers"][0]["image"])


def operator_finding(image: str) -> Finding:
    """Judge the operator's version by its image."""
    number = re.search(r":v?(\d+)\.(\d+)\.\d+[^/]*$", image)
    if number is None:
        return warning("KubeRay", f"{image} tells no version", "milcore is made for 1.7: try a small run first")
    version = (int(number[1]), int(number[2]))
    if version < KUBERAY:
        return failure("KubeRay", f"{image} is older than 1.7", "upgrade operator and CRDs to 1.7")
    if version > KUBERAY:
        return warning("KubeRay", f"{image} is newer than 1.7, which milcore is made for", "try a small run first")
    return ok("KubeRay", image)


def profile_findings(api: ApiServer, profile_uri: str) -> tuple[list[Finding], ClusterProfile]:
    """Findings of the cluster profile, and the profile, or the defaults."""
    profiles = [ClusterProfile()]
    findings = guard("cluster profile", Right("get", "", "configmaps"), api,
                     lambda: _profile_findings(api, profile_uri, profiles))  # fmt: skip
    return list(findings), profiles[-1]


def _profile_findings(api: ApiServer, uri: str, profiles: list[ClusterProfile]) -> Iterator[Finding]:
    """Read the profile at a URI, or in the namespace, into ``profiles``."""
    values = {} if uri else _get(api, api.of_namespace("configmaps", PROFILE))
    if values is None:
        text = f"no ConfigMap {PROFILE}: steps take the defaults"
        yield warning("cluster profile", text, f"{APPLY}, or check a file by --cluster-profile")
        return
    try:
        profiles.append(read_profile(LaunchConfig(cluster_profile=uri)) if uri else _parse(values))
    except InputError as error:
        yield failure("cluster profile", error.line, "correct it and apply it again; what follows goes by the defaults")
    else:
        yield ok("cluster profile", f"{uri or f'ConfigMap {PROFILE}'} parses")


def _parse(values: Json) -> ClusterProfile:
    """Profile in a ConfigMap.

    Raises:
        InputError: it is none.
    """
    text = values.get("data", {}).get(PROFILE_KEY)
    try:
        fields = yaml.safe_load(text or "")
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{PROFILE_KEY}: expected YAML, got another text ({reason}); allowed: a mapping") from None
    if not isinstance(fields, dict):
        kind = type(fields).__name__
        raise InputError(
            f"{PROFILE_KEY} of {PROFILE}: expected a mapping, got {kind}; allowed: ClusterProfile's fields"
        )
    return parse_config(ClusterProfile, fields)


class KeyCheck(NamedTuple):
    """Keys that an object of the namespace must have.

    Args:
        kind: secrets or configmaps.
        name: of the object.
        keys: their names.
        fault: makes the finding where they are absent.
        remedy: next step then.
    """

    kind: str
    name: str
    keys: frozenset[str]
    fault: Callable[[str, str, str], Finding]
    remedy: str

    @property
    def check(self) -> str:
        """Name of the check."""
        return f"{'Secret' if self.kind == 'secrets' else 'ConfigMap'} {self.name}"


def _object_findings(api: ApiServer, profile: ClusterProfile) -> Iterator[Finding]:
    """Check secrets and ConfigMap by their keys, and the network policy."""
    fill_in = "fill in a copy of k8s/secret.example.yaml and apply it to the namespace"
    for each in (
        KeyCheck("secrets", profile.s3_secret, S3_KEYS, failure, fill_in),
        KeyCheck("secrets", "milcore-ray", RAY_KEYS, warning, f"a standing cluster needs it: {fill_in}"),
        KeyCheck("configmaps", profile.storage_config, STORAGE_KEYS, failure, APPLY),
    ):
        yield from guard(each.check, Right("get", "", each.kind), api, partial(_key_findings, api, each))
    right = Right("get", "networking.k8s.io", "networkpolicies")
    yield from guard("network policy", right, api, lambda: _policy_findings(api))


def _key_findings(api: ApiServer, each: KeyCheck) -> Iterator[Finding]:
    """Compare the names of an object's keys; its values are not asked for."""
    metadata = _get(api, api.of_namespace(each.kind, each.name), accept=METADATA_ONLY)
    if metadata is None:
        yield each.fault(each.check, "it is not there", each.remedy)
        return
    names = key_names(metadata)
    if not names:
        remedy = f"kubectl describe {each.kind} {each.name} -n {api.namespace}"
        yield warning(each.check, "it is there; the API does not tell the names of its keys", remedy)
    elif absent := each.keys - names:
        yield each.fault(each.check, f"it lacks {', '.join(sorted(absent))}", each.remedy)
    else:
        yield ok(each.check, f"has {', '.join(sorted(each.keys))} (no value is read)")


def key_names(metadata: Json) -> set[str]:
    """Names of an object's data, out of the record of who set which field."""
    records = [each.get("fieldsV1", {}) for each in metadata["metadata"].get("managedFields", [])]
    fields = [record.get(field, {}) for record in records for field in ("f:data", "f:stringData")]
    return {name.removeprefix("f:") for each in fields for name in each if name.startswith("f:")}


def _policy_findings(api: ApiServer) -> Iterator[Finding]:
    if _get(api, api.of_namespace("networkpolicies", POLICY, "apis/networking.k8s.io/v1")) is None:
        yield failure("network policy", f"{POLICY} is not there: every pod reaches Ray's dashboard", APPLY)
    else:
        yield ok("network policy", f"{POLICY} is there")


def _room_findings(api: ApiServer, profile: ClusterProfile) -> Iterator[Finding]:
    """Compare the pods of the profile's largest jobs with nodes, quotas and limit ranges."""
    pods = pod_sizes(profile, use_gpu=False)
    gpu_worker = pod_sizes(profile, use_gpu=True)[-1]

    def of_nodes() -> Iterator[Finding]:
        nodes = api.get("/api/v1/nodes")["items"]
        scaler = autoscaler(api)
        yield from (fit_finding(pod, nodes, scaler) for pod in (pods[0], pods[-1], gpu_worker))

    def of_quotas() -> Iterator[Finding]:
        yield from quota_findings(api.get(api.of_namespace("resourcequotas"))["items"], pods)

    def of_ranges() -> Iterator[Finding]:
        yield from limit_findings(api.get(api.of_namespace("limitranges"))["items"], [*pods, gpu_worker])

    yield from guard("room for pods", Right("list", "", "nodes"), api, of_nodes, everywhere=True)
    yield from guard("quota", Right("list", "", "resourcequotas"), api, of_quotas)
    yield from guard("limit range", Right("list", "", "limitranges"), api, of_ranges)


def _job_spec(profile: ClusterProfile, image: str) -> Json:
    """Spec of a small RayJob of a profile."""
    return rayjob_spec(JobRequest("doctor", "train", ("train", "doctor"), 1, use_gpu=False), profile, image)
