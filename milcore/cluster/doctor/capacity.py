"""Room for the pods of a RayJob: nodes by allocatable, quotas, limit ranges.

Pure: no API is called.
"""

from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any, NamedTuple

from kubernetes.utils import parse_quantity

from milcore.cluster.doctor.finding import Finding, failure, ok, warning
from milcore.cluster.jobs.profile import ClusterProfile
from milcore.cluster.jobs.rayjob_spec import JobRequest, rayjob_spec

Json = Mapping[str, Any]
Amount = dict[str, Decimal]
NODES_NAMED = 3
GPU_WORKER = "GPU worker"
_EFFECTS = ("NoSchedule", "NoExecute")
REMEDY_SIZE = "lower the sizes in the cluster profile, or add nodes"


class PodSize(NamedTuple):
    """A pod of a RayJob.

    Args:
        name: head, worker, GPU worker or submitter.
        most: pods of the kind at the same time.
        containers: requests of each.
        limits: of each.
        spec: of the pod.
    """

    name: str
    most: int
    containers: Sequence[Amount]
    limits: Sequence[Amount]
    spec: Json

    @property
    def total(self) -> Amount:
        """Requests of the whole pod."""
        return _sum(self.containers)


def pod_sizes(profile: ClusterProfile, *, use_gpu: bool) -> list[PodSize]:
    """Head, submitter and workers of the largest RayJob of a profile."""
    nodes = profile.nodes(use_gpu=use_gpu)
    workers = nodes.max_nodes * (nodes.gpus or nodes.cpus)
    spec = rayjob_spec(JobRequest("doctor", "train", ("train", "doctor"), workers, use_gpu), profile, profile.image)
    cluster = spec["rayClusterSpec"]
    autoscaler = [cluster["autoscalerOptions"]["resources"]] if profile.autoscaling else []
    head, (group,) = cluster["headGroupSpec"]["template"]["spec"], cluster["workerGroupSpecs"]
    return [
        _size("head", 1, head, autoscaler),
        _size("submitter", 1, spec["submitterPodTemplate"]["spec"]),
        _size(GPU_WORKER if use_gpu else "worker", nodes.max_nodes, group["template"]["spec"]),
    ]


def _size(name: str, most: int, spec: Json, more: Sequence[Json] = ()) -> PodSize:
    resources = [*(container["resources"] for container in spec["containers"]), *more]
    requests, limits = ([_amount(each[kind]) for each in resources] for kind in ("requests", "limits"))
    return PodSize(name, most, requests, limits, spec)


def fit_finding(pod: PodSize, nodes: Sequence[Json], scaler: str | None = None) -> Finding:
    """Compare a pod with the nodes by what they can allocate.

    Args:
        pod: to compare.
        nodes: that are there.
        scaler: that may add others; None: there is none.
    """
    reasons = {node["metadata"]["name"]: obstacle(pod, node) for node in nodes}
    fitting = [name for name, reason in reasons.items() if not reason]
    check, size = f"room for the {pod.name}", _amount_text(pod.total)
    if fitting:
        return ok(check, f"{size}: {len(fitting)} of {len(nodes)} node(s) can hold it")
    named = "; ".join(f"{name}: {reason}" for name, reason in list(reasons.items())[:NODES_NAMED])
    text = f"{size}: none of {len(nodes)} node(s) can hold it ({named or 'no nodes'})"
    if pod.name == GPU_WORKER:
        return warning(
            check,
            text,
            "leave use_gpu off; for GPUs, nodes need a device plugin that offers gpu_resource",
        )
    if scaler is not None:
        return warning(check, f"{text}; {scaler} may add one", "see whether one of its node groups has room for it")
    return failure(check, text, REMEDY_SIZE)


def obstacle(pod: PodSize, node: Json) -> str:
    """Reason why a node never holds a pod; empty where it can."""
    spec, labels = node.get("spec", {}), node["metadata"].get("labels", {})
    ready = [each["status"] for each in node["status"].get("conditions", []) if each["type"] == "Ready"]
    if ready != ["True"] or spec.get("unschedulable"):
        return "not ready" if ready != ["True"] else "cordoned"
    for key, value in pod.spec.get("nodeSelector", {}).items():
        if labels.get(key) != value:
            return f"no label {key}={value}"
    for taint in spec.get("taints", []):
        if taint["effect"] in _EFFECTS and not any(_tolerates(each, taint) for each in pod.spec.get("tolerations", [])):
            return f"taint {taint['key']}"
    allocatable = _amount(node["status"].get("allocatable", {}))
    short = [name for name, value in pod.total.items() if value > allocatable.get(name, 0)]
    return ", ".join(f"{_value_text(name, allocatable.get(name, Decimal(0)))} {name}" for name in short)


def _tolerates(toleration: Json, taint: Json) -> bool:
    if toleration.get("effect") not in (None, "", taint["effect"]):
        return False
    key, value = toleration.get("key", ""), toleration.get("value", "")
    if toleration.get("operator", "Equal") == "Exists":
        return key in ("", taint["key"])
    return (key, value) == (taint["key"], taint.get("value", ""))


def quota_findings(quotas: Sequence[Json], pods: Sequence[PodSize]) -> Iterator[Finding]:
    """Compare what is left of quotas with one worker, and with all of them."""
    least, most = (_job_amount(pods, all_workers=each) for each in (False, True))
    for quota in quotas:
        name, spec = quota["metadata"]["name"], quota["spec"]
        if spec.get("scopes") or spec.get("scopeSelector"):
            yield warning("quota", f"{name} holds for some pods only: not checked", f"kubectl describe quota {name}")
            continue
        hard, used = _amount(spec.get("hard", {})), _amount(quota.get("status", {}).get("used", {}))
        left = {key: value - used.get(key, 0) for key, value in hard.items()}
        yield _quota_finding(name, left, least, most)
    if not quotas:
        yield ok("quota", "the namespace has none")


def _quota_finding(name: str, left: Amount, least: Amount, most: Amount) -> Finding:
    remedy = "end other work, lower the sizes in the cluster profile, or ask for a larger quota"
    if short := _shortage(left, least):
        return failure("quota", f"{name} does not hold a head and one worker: {short}", remedy)
    if short := _shortage(left, most):
        return warning("quota", f"{name} holds one worker, but not the profile's max_nodes: {short}", remedy)
    return ok("quota", f"{name} holds the profile's largest job")


def _shortage(left: Amount, need: Amount) -> str:
    lacking = {key: need[key] for key, value in left.items() if need.get(key, 0) > value}
    return ", ".join(
        f"{key} {_value_text(key, left[key])} left of {_value_text(key, value)} needed"
        for key, value in lacking.items()
    )


def _job_amount(pods: Sequence[PodSize], *, all_workers: bool) -> Amount:
    """Need of a job, by the keys that quotas have."""
    of_pods = [pod for pod in pods for _ in range(pod.most if all_workers else 1)]
    requests, limits = _sum([pod.total for pod in of_pods]), _sum([each for pod in of_pods for each in pod.limits])
    need = {name: value for name, value in requests.items() if name in ("cpu", "memory")}
    need |= {f"requests.{name}": value for name, value in requests.items()}
    need |= {f"limits.{name}": value for name, value in limits.items()}
    counts = {"pods": len(of_pods), "count/pods": len(of_pods), "count/rayjobs.ray.io": 1, "count/jobs.batch": 1}
    return need | {name: Decimal(count) for name, count in counts.items()}


def limit_findings(ranges: Sequence[Json], pods: Sequence[PodSize]) -> Iterator[Finding]:
    """Compare containers and pods with the namespace's limit ranges."""
    faults = [
        fault
        for each in ranges
        for limit in each["spec"]["limits"]
        for pod in pods
        for fault in _limit_faults(each["metadata"]["name"], limit, pod)
    ]
    for fault in faults:
        yield failure("limit range", fault, "change the sizes in the cluster profile, or the limit range")
    if not faults:
        yield ok("limit range", "each pod is within it" if ranges else "the namespace has none")


def _limit_faults(name: str, limit: Json, pod: PodSize) -> Iterator[str]:
    for bound, sign, containers in (("max", 1, pod.limits), ("min", -1, pod.containers)):
        amounts = {"Container": containers, "Pod": [_sum(containers)]}.get(limit["type"], [])
        for resource, value in _amount(limit.get(bound, {})).items():
            for amount in amounts:
                if sign * (amount.get(resource, value) - value) > 0:
                    asked, allowed = _value_text(resource, amount[resource]), _value_text(resource, value)
                    yield f"{name}: {pod.name} asks for {asked} {resource}; allowed: {bound} {allowed}"


def _amount(quantities: Mapping[str, str]) -> Amount:
    return {name: parse_quantity(value) for name, value in quantities.items()}


def _sum(amounts: Sequence[Amount]) -> Amount:
    names = dict.fromkeys(name for amount in amounts for name in amount)
    return {name: sum((amount.get(name, Decimal(0)) for amount in amounts), Decimal(0)) for name in names}


def _amount_text(amount: Amount) -> str:
    return ", ".join(f"{_value_text(name, value)} {name}" for name, value in amount.items())


def _value_text(resource: str, value: Decimal) -> str:
    return (
        f"{value / (1 << 30):.2f} GiB".replace(".00 ", " ") if resource.endswith("memory") else f"{value.normalize():f}"
    )
