"""A Kubernetes API that plays KubeRay: it keeps RayJobs, and each look at one brings it to its next state.

Only what the launcher calls is answered, on loopback, over real HTTP. What is called is recorded.
"""

import re
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from milcore.cluster.jobs.rayjob_spec import COMMON_LABELS
from tests.cluster.http_api import Json, Request
from tests.cluster.http_api import status as api_status

ROUTE = re.compile(r"/(?:apis/(?P<group>[^/]+)|api)/v1/namespaces/mil/(?P<kind>\w+)(?:/(?P<name>[^/]+))?(?P<log>/log)?")
VERBS = {"POST": "create", "PATCH": "patch", "DELETE": "delete"}
BEGINNING = datetime(2026, 1, 1, tzinfo=UTC)


class Call(NamedTuple):
    """What an RBAC rule speaks of."""

    verb: str
    group: str
    resource: str


class Fault(NamedTuple):
    """A request that goes wrong: answered with a code (0: the connection is cut), before or after it has its effect."""

    code: int
    after: bool = False
    message: str = "as planned"


class FakeKubeRay:
    """State of the API.

    Args:
        lives: for each job in the order of creation, the states that the looks at it see; the last one stays, and
            None is a job that somebody deletes.
    """

    def __init__(self, *lives: list[Json | None]) -> None:
        self.lives = list(lives)
        self.jobs: dict[str, Json] = {}
        self.bodies: dict[str, Json] = {}
        self.logs: dict[str, list[str]] = {}
        self.events: list[Json] = []
        self.pods: list[Json] = []
        self.orphans: list[Json] = []
        self.faults: dict[tuple[str, str], list[Fault]] = {}
        self.calls: list[Call] = []
        self.created: list[str] = []
        self._lives: dict[str, list[Json | None]] = {}

    def answer(self, request: Request) -> tuple[int, Any]:
        """Answer a request, or fail as planned, before or after it has its effect."""
        route = ROUTE.fullmatch(request.path)
        assert route is not None, request.path
        call = _call(request.method, route)
        self.calls.append(call)
        planned = self.faults.get((call.verb, call.resource), [])
        fault = planned.pop(0) if planned else None
        if fault is None or fault.after:
            code, made = self._answer(call, route["name"], request)
        return (code, made) if fault is None else (fault.code, api_status(fault.code, "Planned", fault.message))

    def _answer(self, call: Call, name: str, request: Request) -> tuple[int, Any]:  # noqa: PLR0911 - a row for each call
        match call:
            case Call("create", _, "rayjobs"):
                return self.create(request.body)
            case Call("get", _, "rayjobs"):
                return self.look(name)
            case Call("list", _, "rayjobs"):
                return 200, self.labelled(request.query["labelSelector"])
            case Call("patch", _, "rayjobs"):
                assert request.headers["content-type"] == "application/merge-patch+json"
                return self.patch(name, request.body)
            case Call("delete", _, "rayjobs"):
                return self.remove(name)
            case Call("list", _, "pods"):
                return 200, self.labelled_pods(request.query["labelSelector"])
            case Call("get", _, "pods/log"):
                return 200, self.log(name)
            case Call("list", _, "events"):
                return 200, {"kind": "EventList", "apiVersion": "v1", "items": self.events}
        raise AssertionError(call)

    def create(self, body: Json) -> tuple[int, Json]:
        """As the API does: a name stands for one object."""
        name = body["metadata"]["name"]
        if name in self.jobs:
            return 409, failure(409, "AlreadyExists")
        self.jobs[name] = {**body, "metadata": {**body["metadata"], "uid": f"uid-of-{name}"}}
        self._lives[name] = self.lives.pop(0)
        self.created.append(name)
        self.bodies[name] = body
        return 201, self.jobs[name]

    def look(self, name: str) -> tuple[int, Json]:
        """The job, brought to its next state."""
        life = self._lives.get(name, [])
        if life and life[0] is None:
            self.jobs.pop(name, None)
        if name not in self.jobs:
            return 404, failure(404, "NotFound")
        if life:
            self.jobs[name]["status"] = life.pop(0) if len(life) > 1 else life[0]
        return 200, self.jobs[name]

    def remove(self, name: str) -> tuple[int, Json]:
        """Delete a job."""
        return (200, failure(200, "Success")) if self.jobs.pop(name, None) else (404, failure(404, "NotFound"))

    def patch(self, name: str, change: Json) -> tuple[int, Json]:
        """The one patch that is asked for: of the owners."""
        if name not in self.jobs:
            return 404, failure(404, "NotFound")
        assert change.keys() == {"metadata"}
        self.jobs[name]["metadata"] |= change["metadata"]
        return 200, self.jobs[name]

    def labelled(self, selector: str) -> Json:
        """The jobs with all labels of the selector."""
        wanted = dict(part.split("=", 1) for part in selector.split(","))
        return {"items": [job for job in self.jobs.values() if wanted.items() <= job["metadata"]["labels"].items()]}

    def labelled_pods(self, selector: str) -> Json:
        """The pods with all labels of the selector.

        A job's submitter is there once it has a log, other pods once there is a job, orphans always.
        """
        submitters = [
            pod(f"{job}-abcde", {"job-name": job}, phase="Running", startTime="2026-01-01T00:00:00Z")
            for job in self.jobs
            if job in self.logs
        ]
        wanted = dict(part.split("=", 1) for part in selector.split(","))
        pods = [*submitters, *(self.pods if self.jobs else []), *self.orphans]
        items = [pod for pod in pods if wanted.items() <= pod["metadata"]["labels"].items()]
        return {"kind": "PodList", "apiVersion": "v1", "items": items}

    def log(self, pod: str) -> str:
        """Lines with the times they were written, a millisecond apart."""
        lines = self.logs[pod.removesuffix("-abcde")]  # that of another submitter is under its own name
        times = (BEGINNING + timedelta(milliseconds=k + 1) for k in range(len(lines)))
        stamps = (f"{when:%Y-%m-%dT%H:%M:%S.%f}789Z" for when in times)
        return "".join(f"{stamp} {line}\n" for stamp, line in zip(stamps, lines, strict=True))


def pod(name: str, labels: dict[str, str], **status: Any) -> Json:
    """A pod made of the RayJob's templates."""
    return {"metadata": {"name": name, "labels": {**COMMON_LABELS, **labels}}, "status": status}


def failure(code: int, reason: str) -> Json:
    return api_status(code, reason, f"{reason} it is")


def _call(method: str, route: re.Match[str]) -> Call:
    verb = VERBS.get(method) or ("get" if route["name"] else "list")
    return Call(verb, route["group"] or "", f"{route['kind']}{'/log' if route['log'] else ''}")
