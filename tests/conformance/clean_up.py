"""Removal of what a conformance run made, whatever ended it."""

from collections.abc import Callable

from tests.conformance.case import Clock, expect
from tests.conformance.cluster import Cluster
from tests.conformance.objects import SELECTOR
from tests.conformance.report import Row
from tests.conformance.runner import error_line
from tests.conformance.step import START_S, Step

GONE_S = 300.0
NAME, EXPECTED = "clean-up", "nothing is left on the cluster, nor in the object store"


class CleanUp:
    """Removals; the last that was added is done first, and each is tried."""

    def __init__(self) -> None:
        self._removals: list[tuple[str, Callable[[], object]]] = []

    def add(self, name: str, removal: Callable[[], object]) -> None:
        """Add a removal, before that is made which it removes."""
        self._removals.append((name, removal))

    def run(self) -> Row | None:
        """The row of the removals; None where there is nothing to remove."""
        if not self._removals:
            return None
        clock, faults = Clock(), list[str]()
        while self._removals:
            name, removal = self._removals.pop()
            try:
                removal()
            except Exception as error:  # noqa: BLE001 - the other removals are done all the same
                faults.append(f"{name}: {error_line(error)}")
            clock.step(name)
        seen = "; ".join(faults) or "all removed"
        return Row(NAME, EXPECTED, "failed" if faults else "passed", seen, "cluster", clock.seconds, clock.steps)


def remove_jobs(cluster: Cluster) -> None:
    """Delete RayJobs, and then pods of steps: nobody writes any more."""
    path = cluster.api.of_namespace("rayjobs", group="apis/ray.io/v1")
    for job in (cluster.get(path) or {"items": []})["items"]:
        cluster.jobs.delete(job["metadata"]["name"])
    pods = cluster.get(cluster.api.of_namespace("pods"), labelSelector=SELECTOR)
    for pod in pods["items"]:
        cluster.delete(cluster.api.of_namespace("pods", pod["metadata"]["name"]), gracePeriodSeconds="0")


def remove_objects(cluster: Cluster) -> None:
    """Remove what the pods wrote to the object store, by a pod: it may not be reached from here."""
    if cluster.get(cluster.api.of_namespace("configmaps", "milcore-storage")) is None:
        return  # no overlay, so no pod has written
    program = f"from milcore.runtime import storage; storage.remove_folder({cluster.uri()!r})"
    with Step(cluster, "remove-objects", ("python", "-c", program)) as step:
        code, log = step.end(START_S)
    expect(code == 0, f"{cluster.uri()} may be left: {log[-300:]}")


def remove_namespace(cluster: Cluster) -> None:
    """Delete a namespace and wait until it is gone."""
    cluster.delete_namespace()
    path = f"/api/v1/namespaces/{cluster.name}"
    cluster.until(lambda: cluster.get(path) is None, GONE_S, f"namespace {cluster.name} gone")
