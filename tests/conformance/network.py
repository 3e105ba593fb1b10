"""Cases of the network policies: who reaches which port of the standing cluster's head."""

import json

from milcore.cluster.doctor.pod import CONTROL, REACHED
from tests.conformance import objects
from tests.conformance.case import Clock, expect
from tests.conformance.cluster import Cluster
from tests.conformance.installation import head_address
from tests.conformance.objects import STEP_LABELS
from tests.conformance.step import START_S, Step

SUFFIX = "other"
DASHBOARD, OTHER_PORTS = 8265, (6379, 10001)
# the doctor's program knows one port
PROGRAM = "from milcore.cluster.doctor import pod; pod.PORT = {port}; pod.main(['--reach', '{address}'])"


def namespace(cluster: Cluster) -> Cluster:
    """Another namespace, without an overlay."""
    place = cluster.beside(SUFFIX)
    if cluster.get(f"/api/v1/namespaces/{place.name}") is None:
        place.create_namespace()
        for body in objects.secret_bodies(place.settings):
            place.create("secrets", body)
        place.create("configmaps", objects.storage(place.settings))
        place.create("serviceaccounts", objects.service_account())
    return place


def step(cluster: Cluster, clock: Clock) -> str:
    """The dashboard's port is open to steps."""
    return _reach(cluster, cluster, clock, "reach-step", DASHBOARD, STEP_LABELS, expected=True)


def other_ports(cluster: Cluster, clock: Clock) -> str:
    seen = [_reach(cluster, cluster, clock, f"reach-{port}", port, STEP_LABELS, expected=False) for port in OTHER_PORTS]
    return "; ".join(seen)


def unlabelled(cluster: Cluster, clock: Clock) -> str:
    return _reach(cluster, cluster, clock, "reach-unlabelled", DASHBOARD, {}, expected=False)


def other_namespace(cluster: Cluster, clock: Clock) -> str:
    place = namespace(cluster)
    return _reach(cluster, place, clock, "reach-other", DASHBOARD, STEP_LABELS, expected=False)


def _reach(
    cluster: Cluster, place: Cluster, clock: Clock, name: str, port: int, labels: dict[str, str], *, expected: bool
) -> str:
    """A pod of a place reaches a port of the head as expected."""
    program = PROGRAM.format(port=port, address=head_address(cluster))
    with Step(place, name, ("python", "-c", program), labels=labels) as pod:
        log = pod.succeed(START_S)
    clock.step(f"port {port}")
    answer = json.loads(log.splitlines()[-1])
    seen = f"port {port} {'reached' if answer[REACHED] else 'not reached'}"
    expect(answer[REACHED] is expected, seen)
    expect(answer[REACHED] or answer[CONTROL], f"{seen}, nor API server or object store: this says nothing of a policy")
    return seen
