"""Cases of what a namespace refuses or lacks: a quota, a secret, an image, a right.

They have a namespace of their own, without the standing cluster.
"""

import os
from unittest import mock

from milcore.cluster.doctor.installation import cluster_findings
from tests.conformance import objects
from tests.conformance.case import Clock, expect
from tests.conformance.cluster import Cluster
from tests.conformance.installation import LOCAL
from tests.conformance.step import START_S, Step, train_command

SUFFIX = "refusals"
# room for head, submitter, autoscaler and step, but for no worker
BESIDE_HEAD_GIB = 2


def namespace(cluster: Cluster) -> Cluster:
    """The namespace of these cases, made by the first of them."""
    place = cluster.beside(SUFFIX)
    if cluster.get(f"/api/v1/namespaces/{place.name}") is None:
        place.create_namespace()
        place.prepare()
        place.apply(LOCAL, standing=False)
    return place


def _fail(cluster: Cluster, clock: Clock, name: str, words: tuple[str, ...], profile: str = "soon", **pod: str) -> str:
    """A training ends with the reason."""
    place = namespace(cluster)
    command = train_command(cluster, f"run-{name}", profile)
    with Step(place, name, command, **pod) as step:
        seen = step.fail(*words)
        clock.step("refused")
    return seen


def secret(cluster: Cluster, clock: Clock) -> str:
    words = (f'secret "{objects.NO_SECRET}" not found',)
    return _fail(cluster, clock, "no-secret", words, "secret")


def image(cluster: Cluster, clock: Clock) -> str:
    name = f"{cluster.settings.image}-none"
    return _fail(cluster, clock, "no-image", ("mage", name), job_image=name)


def right(cluster: Cluster, clock: Clock) -> str:
    """The account default has no rights."""
    words = ("does not let this service account", "rayjobs")
    return _fail(cluster, clock, "no-right", words, account="default")


def quota(cluster: Cluster, clock: Clock) -> str:
    place = namespace(cluster)
    memory = objects.local_profile()["head_memory_gib"] + BESIDE_HEAD_GIB
    _allow(place, f"{memory}Gi")
    try:
        return _fail(cluster, clock, "small-quota", ("exceeded quota: conformance",))
    finally:
        _lift(place)


def doctor_quota(cluster: Cluster, clock: Clock) -> str:
    place = namespace(cluster)
    _allow(place, "1Gi")
    try:
        return _doctor_failures(place, clock, "quota")
    finally:
        _lift(place)


def doctor_image(cluster: Cluster, clock: Clock) -> str:
    with mock.patch.dict(os.environ, {"MILCORE_IMAGE": f"{cluster.settings.image}-none"}):
        return _doctor_failures(namespace(cluster), clock, "pod")


def doctor_secret(cluster: Cluster, clock: Clock) -> str:
    """Last in this namespace, whose secret is gone after it."""
    place = namespace(cluster)
    place.delete(place.api.of_namespace("secrets", "milcore-s3"))
    return _doctor_failures(place, clock, "Secret milcore-s3")


def _allow(place: Cluster, memory: str) -> None:
    place.create("resourcequotas", objects.quota({"requests.memory": memory}))


def _lift(place: Cluster) -> None:
    place.delete(place.api.of_namespace("resourcequotas", "conformance"))


def _doctor_failures(place: Cluster, clock: Clock, check: str) -> str:
    """A check of the doctor fails."""
    findings = list(cluster_findings(place.api, "", None, wait_s=START_S))
    clock.step("checked")
    failures = {each.check: each.text for each in findings if each.state == "failure"}
    seen = "; ".join(f"{name}: {text}" for name, text in failures.items()) or "no failure"
    expect(check in failures, seen)
    return seen
