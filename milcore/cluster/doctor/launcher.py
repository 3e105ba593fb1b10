"""Checks of the launcher of RayJobs: cluster profile, number of nodes, rights.

The doctor makes them, and a pipeline before its first job. What they ask Kubernetes for everyone may ask, and nothing
is written.
"""

from collections.abc import Iterator, Mapping, Sequence

from kubernetes.client.exceptions import ApiException

from milcore.cluster.doctor.api_server import FORBIDDEN, NO_ANSWER, ApiServer, Json
from milcore.cluster.doctor.finding import Finding, failure, ok
from milcore.cluster.jobs.kubernetes import connect
from milcore.cluster.jobs.profile import read_profile
from milcore.cluster.jobs.rayjob import StepEnvironment
from milcore.cluster.jobs.rights import LAUNCHER_RIGHTS, Right
from milcore.config import LaunchConfig
from milcore.errors import ClusterError, InputError
from milcore.runtime.progress import log_line

APPLY = "apply k8s/base or an overlay of it to the namespace"
REMEDY_RIGHTS = f"{APPLY}; it has a Role, milcore-launcher, to bind to who runs steps"
REVIEWS = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"


def check_launches(launches: Sequence[tuple[str, LaunchConfig]], variables: Mapping[str, str]) -> None:
    """Refuse RayJobs that cannot run.

    Args:
        launches: of the steps that launch a job, each with the parameter that counts its workers.
        variables: the environment that the pipeline sets.

    Raises:
        InputError: a profile is none, workers need more nodes than it allows, or the launcher lacks a right.
        ClusterError: the API does not answer.
    """
    of_rayjobs = [(name, launch) for name, launch in launches if launch.ray_address == "rayjob"]
    for name, launch in of_rayjobs:
        read_profile(launch).nodes(use_gpu=launch.use_gpu).nodes_for(max(1, launch.workers), name)
    if of_rayjobs:
        _check_rights(StepEnvironment.read(variables).namespace)


def _check_rights(namespace: str | None) -> None:
    try:
        api = ApiServer(*connect(namespace))
    except ClusterError as error:
        raise InputError(error.line) from None
    try:
        lacking = lacking_rights(api)
    except ApiException as error:
        if error.status == FORBIDDEN:
            log_line(f"the launcher's rights are not checked: namespace {api.namespace} lets nobody ask for them")
            return
        raise ClusterError(f"the Kubernetes API refuses to tell rights: {error.status} {error.reason}") from None
    except NO_ANSWER as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ClusterError(f"the Kubernetes API at {api.host} does not answer: {reason}") from None
    if lacking:
        raise InputError(
            f"rights: expected {len(LAUNCHER_RIGHTS)} of the launcher in namespace {api.namespace}, got none to "
            f"{', '.join(right.text for right in lacking)}; {REMEDY_RIGHTS}"
        )


def rights_findings(api: ApiServer) -> Iterator[Finding]:
    """Ask for each right of the launcher, as the user who runs this."""
    lacking = lacking_rights(api)
    for right in lacking:
        text = f"you may not {right.text}, which a step with ray_address rayjob does"
        yield failure("rights", text, REMEDY_RIGHTS)
    if not lacking:
        yield ok("rights", f"you have all {len(LAUNCHER_RIGHTS)} of the launcher (a step has those of its own account)")


def lacking_rights(api: ApiServer) -> list[Right]:
    """Rights of the launcher that the caller has not."""
    return [right for right in LAUNCHER_RIGHTS if not may(api, right)]


def may(api: ApiServer, right: Right) -> bool:
    """True where the caller has a right in the namespace; everyone may ask."""
    resource, _, subresource = right.resource.partition("/")
    attributes = {"namespace": api.namespace, "verb": right.verb, "group": right.group, "resource": resource}
    attributes |= {"subresource": subresource} if subresource else {}
    body: Json = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": attributes},
    }
    return bool(api.post(REVIEWS, body)["status"]["allowed"])
