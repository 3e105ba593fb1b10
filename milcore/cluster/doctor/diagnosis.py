"""All checks that a call asks for, area by area."""

import contextlib
import os
from collections.abc import Callable, Generator, Iterator
from typing import NamedTuple

from milcore.cluster.doctor.api_server import ApiServer
from milcore.cluster.doctor.finding import DoctorReport, Finding, failure
from milcore.cluster.doctor.installation import cluster_findings
from milcore.cluster.doctor.kubeflow import check_host, kubeflow_findings
from milcore.cluster.doctor.machine import machine_findings
from milcore.cluster.doctor.object_store import check_uri, store_findings
from milcore.cluster.jobs.kubernetes import connect
from milcore.errors import ClusterError, InputError
from milcore.runtime.redaction import redact

# a pull of the image takes longer where a node has none of it yet
SECONDS_FOR_POD = 60.0


class Surroundings(NamedTuple):
    """Places to check beside this machine.

    Args:
        uri: of a store or run; None: none.
        cluster: the Kubernetes cluster of the kubeconfig or the pod.
        namespace: in it; None: that of the kubeconfig or the pod.
        cluster_profile: file of a cluster profile; empty: that of the namespace.
        kubeflow: address of Kubeflow Pipelines; None: none.
    """

    uri: str | None = None
    cluster: bool = False
    namespace: str | None = None
    cluster_profile: str = ""
    kubeflow: str | None = None


def diagnose(surroundings: Surroundings, show: Callable[[Finding], object]) -> DoctorReport:
    """Run the checks and return their findings.

    Args:
        surroundings: places to check.
        show: gets each finding as it comes.

    Raises:
        InputError: a place cannot be checked at all.
    """
    surroundings = _checked_surroundings(surroundings)
    findings = list[Finding]()
    for area, of_area in _areas(surroundings):
        # Ctrl-C beside a check ends it, too, so that it removes its objects
        with contextlib.closing(of_area):
            for finding in of_area:
                # an address may hold a password, and a server's answer quote a key
                findings.append(finding._replace(area=redact(area), text=redact(finding.text)))
                show(findings[-1])
    return DoctorReport(findings)


def _checked_surroundings(surroundings: Surroundings) -> Surroundings:
    """The places by their absolute addresses.

    Raises:
        InputError: one is none, or says how to check a cluster where none is checked.
    """
    uri, _, namespace, profile, kubeflow = surroundings
    if not surroundings.cluster and (namespace is not None or profile):
        raise InputError(
            f"namespace, cluster_profile: expected them with cluster, got {namespace or profile!r} alone; allowed: "
            "--cluster --namespace N --cluster-profile FILE; add --cluster"
        )
    return surroundings._replace(
        uri=None if uri is None else check_uri(uri), kubeflow=None if kubeflow is None else check_host(kubeflow)
    )


def _areas(surroundings: Surroundings) -> Iterator[tuple[str, Generator[Finding]]]:
    """Name of each area, and its checks."""
    yield "this machine", machine_findings()
    if surroundings.uri is not None:
        yield surroundings.uri, store_findings(surroundings.uri)
    if surroundings.cluster:
        yield _cluster_area(surroundings)
    if surroundings.kubeflow is not None:
        yield surroundings.kubeflow, kubeflow_findings(surroundings.kubeflow)


def _cluster_area(surroundings: Surroundings) -> tuple[str, Generator[Finding]]:
    """Checks of the kubeconfig's or the pod's cluster; a failure without one."""
    try:
        api = ApiServer(*connect(surroundings.namespace or os.environ.get("POD_NAMESPACE") or None))
    except ClusterError as error:
        remedy = "name a kubeconfig by KUBECONFIG, or check without --cluster"
        return "Kubernetes", (finding for finding in [failure("API", error.line, remedy)])
    of_cluster = cluster_findings(api, surroundings.cluster_profile, surroundings.uri, SECONDS_FOR_POD)
    return f"Kubernetes, namespace {api.namespace}", of_cluster
