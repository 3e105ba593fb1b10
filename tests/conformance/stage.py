"""A cluster for the tests of the cases: the fakes' objects, and pods of steps that do what a cluster's would.

It plays only what a case looks at. Each change that a case asks for is recorded; reads are not.
"""

import json

from milcore.cluster.doctor.pod import CONTROL, REACHED
from milcore.cluster.jobs.rayjob_spec import COMMON_LABELS, RUN_LABEL, short_hash
from tests.cluster.doctor.kubernetes_api import FakeCluster
from tests.cluster.http_api import Json, Request
from tests.conformance.fake_doctor import SPEC
from tests.conformance.objects import STEP_LABELS
from tests.conformance.recordings import IMAGE

NAMESPACE = "mil"
RAYJOBS = "/apis/ray.io/v1/namespaces/{}/rayjobs"
RETRY = "-retry"
DISTURBED = ("lost-", "terminated", "suspended")
TRAINING = "epoch 1/400: a\nepoch 12/400: b\n"
STATES = "RayJob {job}: Initializing, job not started\nRayJob {job}: Running, job RUNNING\n"
# steps that fail, and their lines
FAILURES = {
    "no-secret": 'RayJob x waits: head pod y: CreateContainerConfigError: secret "milcore-none" not found',
    "no-image": 'RayJob x waits: head pod y: ErrImagePull: Failed to pull image "milcore:1-none"',
    "no-right": "milcore: Kubernetes does not let this service account list rayjobs in namespace mil-refusals",
    "small-quota": "RayJob x waits: FailedToCreateWorkerPod: exceeded quota: conformance",
}


class Stage:
    """A cluster that plays.

    Args:
        stuck: name of a step that never ends.
        codes: exit codes of steps, in place of 0.
        open_network: no policy is enforced.
        has_network: pods reach the API server.
    """

    def __init__(
        self, stuck: str = "", codes: dict[str, int] | None = None, *, open_network: bool = False,
        has_network: bool = True,
    ) -> None:  # fmt: skip
        self.fake = FakeCluster(SPEC)
        self.objects = self.fake.objects
        self.calls: list[str] = []
        self.commands: list[list[str]] = []
        self.logs: dict[str, str] = {}
        self.lines = dict(FAILURES)
        self._stuck, self._codes = stuck, codes or {}
        self._open_network, self._has_network = open_network, has_network
        del self.fake.answers[f"/api/v1/namespaces/{NAMESPACE}"]

    def answer(self, request: Request) -> tuple[int, object]:
        if request.method != "GET" and "selfsubjectaccessreviews" not in request.path:
            self.calls.append(_text(request))
        if request.path.endswith("/exec"):
            return 200, self._kill_process(request.path.removesuffix("/exec"))
        if request.path.endswith("/log") and request.path in self.logs:
            return 200, self.logs[request.path]
        if request.query.get("dryRun") and request.body["metadata"]["name"] == "conformance-privileged":
            return 403, {"reason": "Forbidden", "message": 'violates PodSecurity "restricted:latest": privileged'}
        code, answer = self.fake.answer(request)
        if code < 300 and request.query.get("dryRun") != "All":
            self._play(request)
        return code, answer

    def _play(self, request: Request) -> None:
        if (request.method, request.path) == ("POST", "/api/v1/namespaces"):
            self._start_head(request.body["metadata"]["name"])
        match request.method, request.path.rsplit("/", 2):
            case "POST", [_, _, "pods"]:
                self._start_step(request.path.rpartition("/")[0], request.body)
            case "POST", [_, place, "jobs"]:
                self._start_doctor(place, request.body)
            case "DELETE", [_, "pods" | "rayjobs", name]:
                self._disturb(name)
            case "PATCH", [_, "rayjobs", name]:
                self._suspend(request.path, name)

    def _start_head(self, place: str) -> None:
        """The head of a standing cluster, which is ready."""
        labels = {"ray.io/cluster": "milcore", "ray.io/node-type": "head"}
        status = {"podIP": "10.1.2.3", "conditions": [{"type": "Ready", "status": "True"}]}
        pod = {"metadata": {"name": "milcore-head", "labels": labels}, "status": status}
        self.objects.by_path[f"/api/v1/namespaces/{place}/pods/milcore-head"] = pod

    def _start_step(self, place: str, body: Json) -> None:
        """A step's pod, with its RayJob if it is to have one for long."""
        name, path = body["metadata"]["name"], f"{place}/pods/{body['metadata']['name']}"
        self.commands.append(body["spec"]["containers"][0]["command"])
        self.logs[f"{path}/log"] = self._log(body)
        if name.startswith(DISTURBED) and not name.endswith(RETRY):
            self._start_job(place.rpartition("/")[2], name, body)
            self._set(path, {"running": {}})
        elif name == self._stuck:
            self._set(path, {"running": {}})
        else:
            self._end(path)
            self._free(name.removesuffix(RETRY))

    def _log(self, body: Json) -> str:
        name, command = body["metadata"]["name"], " ".join(body["spec"]["containers"][0]["command"])
        if name.startswith("reach-"):
            is_step = body["metadata"]["labels"].items() >= STEP_LABELS.items()
            reached = is_step and "PORT = 8265" in command and name != "reach-other"
            return json.dumps({REACHED: reached or self._open_network, CONTROL: self._has_network}) + "\n"
        if name in self.lines:
            return f"{self.lines[name]}\n"
        if name == "lost-step-retry":
            return "RayJob lost-step-r0 is there already: following it\n"
        kind = STATES.format(job=f"{name}-r0") if "rayjob" in command else "Ray job milcore-x-r0: python\n"
        return kind + TRAINING

    def _start_job(self, place: str, name: str, body: Json) -> None:
        values = {each["name"]: each.get("value", "") for each in body["spec"]["containers"][0]["env"]}
        job, owner = f"{name}-r0", {"name": name}
        labels = {**COMMON_LABELS, RUN_LABEL: short_hash(values["PIPELINE_RUN_ID"])}
        self.objects.by_path[f"{RAYJOBS.format(place)}/{job}"] = {
            "metadata": {"name": job, "labels": labels, "ownerReferences": [owner]},
            "status": {"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"},
        }
        for role, label in (("head", {}), ("worker", {"ray.io/node-type": "worker"}), ("submitter", {"job-name": job})):
            pod = {"metadata": {"name": f"{job}-{role}", "labels": {**COMMON_LABELS, **label}}}
            status = {"phase": "Running", "startTime": "2026-01-01T00:00:00Z"}
            self.objects.by_path[f"/api/v1/namespaces/{place}/pods/{job}-{role}"] = {**pod, "status": status}

    def _start_doctor(self, place: str, job: Json) -> None:
        """A pod of the doctor whose image is missing, in a namespace that is not the doctor's own."""
        name = f"{job['metadata']['name']}-abcde"
        path = f"/api/v1/namespaces/{place}/pods/{name}"
        self.objects.by_path[path] = {"metadata": {"name": name, "labels": {"job-name": job["metadata"]["name"]}}}
        self._set(path, {"waiting": IMAGE.value})

    def _disturb(self, name: str) -> None:
        """What follows the deletion of a step, of its RayJob, or of one of its pods."""
        step = name.partition("-r0")[0]
        if step == name:
            self._free(name)
            return
        for path in [path for path in self.objects.by_path if path.endswith(f"/pods/{step}")]:
            self.logs[f"{path}/log"] += "going on at epoch 11\n"
            self._end(path)
            self._free(step)

    def _suspend(self, path: str, name: str) -> None:
        job = self.objects.by_path[path]
        job["status"] = {"jobDeploymentStatus": "Suspended" if job["spec"]["suspend"] else "Running"}
        if not job["spec"]["suspend"]:
            self._disturb(name)

    def _free(self, step: str) -> None:
        """Without its owner, or at its end, a RayJob is removed with its pods."""
        gone = [path for path in self.objects.by_path if f"/{step}-r0" in path]
        for path in gone:
            del self.objects.by_path[path]

    def _kill_process(self, path: str) -> str:
        """The program of a step is killed: its pod has ended, and its RayJob goes on."""
        self._set(path, {"terminated": {"exitCode": 137}})
        return ""

    def _end(self, path: str) -> None:
        name = path.rpartition("/")[2]
        code = self._codes.get(name, int(name in FAILURES))
        self._set(path, {"terminated": {"exitCode": code}})

    def _set(self, path: str, state: Json) -> None:
        self.objects.by_path[path]["status"] = {"containerStatuses": [{"state": state}]}


def _text(request: Request) -> str:
    """Method and place of a change, with the name of what is created and the flags of the call."""
    path = request.path.removeprefix("/api/v1/").removeprefix("/apis/")
    name = f"/{request.body['metadata']['name']}" if request.body and request.method == "POST" else ""
    flags = "".join(f" {key}={value}" for key, value in sorted(request.query.items()) if key != "propagationPolicy")
    return f"{request.method} {path}{name}{flags}"
