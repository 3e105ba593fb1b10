"""Cases of the installation: doctor, overlays, PodSecurity, a cohort, the standing cluster."""

from typing import Any

from kubernetes.client.exceptions import ApiException

from milcore.cluster.doctor.installation import cluster_findings
from milcore.cluster.jobs.kubernetes import FORBIDDEN
from tests.conformance import objects
from tests.conformance.case import Clock, expect
from tests.conformance.cluster import Cluster
from tests.conformance.objects import Json
from tests.conformance.step import START_S, Step

LOCAL = "overlays/local"
OTHERS = ("base", "overlays/gpu", "overlays/kubeflow-profile")
SLIDES, FOLDER = 16, "/tmp/cohort"  # noqa: S108 - of the pod
HEAD = "ray.io/cluster=milcore,ray.io/node-type=head"
COHORT = """
milcore synth {folder} --slides {slides} --seed 0
python -c 'from pathlib import Path; from milcore.runtime import storage
for path in filter(Path.is_file, Path("{folder}").rglob("*")):
    storage.write_bytes(storage.join("{uri}", *path.relative_to("{folder}").parts), path.read_bytes())'
milcore ingest {uri}/manifest.csv {store}
"""


def overlay(cluster: Cluster, clock: Clock) -> str:
    """Apply the overlay for one machine, twice: the second time it changes nothing."""
    first = cluster.apply(LOCAL).splitlines()
    clock.step("applied")
    again = [line for line in cluster.apply(LOCAL).splitlines() if not line.endswith(" unchanged")]
    clock.step("again")
    # a custom resource whose defaults the API fills in may say configured
    expect(all(line.startswith("raycluster") for line in again), f"changed again: {again}")
    return f"{len(first)} objects applied, and unchanged the second time"


def other_overlays(cluster: Cluster, clock: Clock) -> str:
    """The API accepts the other overlays; nothing is created."""
    for name in OTHERS:
        cluster.apply(name, "--dry-run=server")
        clock.step(name)
    return f"{', '.join(OTHERS)}: accepted (dry run)"


def pod_security(cluster: Cluster, clock: Clock) -> str:
    """The namespace refuses a privileged pod, and accepts head, worker and submitter (dry run)."""
    spec = objects.job_spec(cluster.settings)
    of_cluster = spec["rayClusterSpec"]
    templates = {
        "head": of_cluster["headGroupSpec"]["template"],
        "worker": of_cluster["workerGroupSpecs"][0]["template"],
        "submitter": spec["submitterPodTemplate"],
    }
    refusal = _dry_run(cluster, "privileged", _privileged(templates["head"]))
    expect("violates PodSecurity" in refusal, f"a privileged pod: {refusal or 'accepted'}")
    clock.step("privileged")
    for role, template in templates.items():
        refusal = _dry_run(cluster, role, template)
        expect(not refusal, f"{role}: {refusal}")
        clock.step(role)
    return f"a privileged pod is refused; {', '.join(templates)} are accepted"


def _privileged(template: Json) -> Json:
    (container,) = template["spec"]["containers"]
    security = {**container["securityContext"], "allowPrivilegeEscalation": True, "privileged": True}
    return {**template, "spec": {**template["spec"], "containers": [{**container, "securityContext": security}]}}


def _dry_run(cluster: Cluster, name: str, template: Json) -> str:
    """The refusal of a pod; empty where it would be created."""
    metadata = {**template["metadata"], "name": f"conformance-{name}"}
    try:
        cluster.create("pods", {"apiVersion": "v1", "kind": "Pod", **template, "metadata": metadata}, dryRun="All")
    except ApiException as error:
        if error.status == FORBIDDEN:
            return f"{error.body}"
        raise
    return ""


def cohort(cluster: Cluster, clock: Clock) -> str:
    """Synthesise slides in a pod, bring them to the object store, and ingest them from there."""
    uri, store = cluster.uri("cohort"), cluster.uri("store")
    script = COHORT.format(folder=FOLDER, slides=SLIDES, uri=uri, store=store)
    with Step(cluster, "cohort", ("sh", "-ec", script)) as step:
        step.succeed()
    clock.step("ingested")
    return f"{SLIDES} slides ingested from s3://"


def standing_cluster(cluster: Cluster, clock: Clock) -> str:
    head = cluster.until(lambda: _ready_head(cluster), START_S, "a ready head of the standing cluster")
    clock.step("ready")
    return f"{head['metadata']['name']} is ready"


def _ready_head(cluster: Cluster) -> Any:
    pods = cluster.get(cluster.api.of_namespace("pods"), labelSelector=HEAD)["items"]
    ready = [pod for pod in pods for each in pod["status"].get("conditions", [])
             if (each["type"], each["status"]) == ("Ready", "True")]  # fmt: skip
    return next(iter(ready), None)


def head_address(cluster: Cluster) -> str:
    """IP address of the standing cluster's head."""
    head = cluster.until(lambda: _ready_head(cluster), START_S, "a ready head of the standing cluster")
    return str(head["status"]["podIP"])


def doctor(cluster: Cluster, clock: Clock) -> str:
    """Each check of the doctor in the namespace, by whoever runs this."""
    findings = list(cluster_findings(cluster.api, "", cluster.uri("doctor"), wait_s=START_S))
    clock.step("checked")
    failures = [f"{each.check}: {each.text}" for each in findings if each.state == "failure"]
    expect(not failures, "; ".join(failures))
    warnings = [each.check for each in findings if each.state == "warning"]
    return f"{len(findings) - len(warnings)} ok, warnings: {', '.join(warnings) or 'none'}"
