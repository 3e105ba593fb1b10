"""Statuses and events, worded as the sources word them; each names its source.

Files are those of kubernetes/kubernetes, ray-project/kuberay (ray-operator/controllers/ray) and ray-project/ray.
"""

from typing import Any, NamedTuple

Json = dict[str, Any]


class Recording(NamedTuple):
    """What an API answers, and the source that words it."""

    source: str
    value: Json


def _status(deployment: str, job: str, reason: str = "", message: str = "") -> Json:
    return {"jobDeploymentStatus": deployment, "jobStatus": job, "reason": reason, "message": message}


_STATES = "kuberay rayjob_controller.go, Reconcile, and apis/ray/v1/rayjob_types.go, JobDeploymentStatus"
NEW = Recording(f"{_STATES}: JobDeploymentStatusNew is empty", {})
STARTING = Recording(_STATES, _status("Initializing", ""))
RUNNING = Recording(_STATES, _status("Running", "RUNNING"))
DONE = Recording(_STATES, _status("Complete", "SUCCEEDED"))
SUSPENDING = Recording(f"{_STATES}; updateStatusToSuspendingIfNeeded", _status("Suspending", "RUNNING"))
SUSPENDED = Recording(f"{_STATES}: the job's status is reset", _status("Suspended", ""))

HEAD_LOST = Recording(
    "kuberay rayjob_controller.go, Reconcile, JobDeploymentStatusRunning: GetJobInfo answers bad request, and the "
    "submitter has finished; jobStatus stays as it was",
    _status("Failed", "RUNNING", "AppFailed", "Submitter completed but Ray job not found in RayCluster."),
)
SUPERVISOR_LOST = Recording(
    "ray 2.60 python/ray/dashboard/modules/job/job_manager.py, ActorDiedError; Ray's text of it: "
    "python/ray/exceptions.py, ActorDiedError.BASE_ERROR_MSG",
    _status("Failed", "FAILED", "AppFailed", "Job supervisor actor died: The actor died unexpectedly before "
            "finishing this task."),
)  # fmt: skip
NOT_SUBMITTED = Recording(
    "kuberay rayjob_controller.go, checkSubmitterAndUpdateStatusIfNeeded; kubernetes pkg/controller/job/"
    "job_controller.go: BackoffLimitExceeded",
    _status(
        "Failed", "", "SubmissionFailed",
        "Job submission has failed. Reason: BackoffLimitExceeded. Message: Job has reached the specified backoff limit",
    ),
)  # fmt: skip

QUOTA = Recording(
    "kuberay raycluster_controller.go, createWorkerPod; the error is kubernetes "
    "staging/src/k8s.io/apiserver/pkg/admission/plugin/resourcequota/controller.go, CheckRequest, in the words of "
    "apimachinery pkg/api/errors, NewForbidden",
    {
        "reason": "FailedToCreateWorkerPod",
        "message": 'Failed to create worker Pod for the cluster mil/{cluster}, pods "{cluster}-cpu-worker-x7k2p" is '
        "forbidden: exceeded quota: conformance, requested: requests.memory=4Gi, used: requests.memory=5Gi, limited: "
        "requests.memory=6Gi",
    },
)
IMAGE = Recording(
    "kubernetes pkg/kubelet/images/image_manager.go, EnsureImageExists, and types.go, ErrImagePullBackOff",
    {"reason": "ImagePullBackOff", "message": 'Back-off pulling image "milcore:0.0.0-none"'},
)
SECRET = Recording(
    "kubernetes pkg/kubelet/kuberuntime/kuberuntime_container.go, ErrCreateContainerConfig; "
    "pkg/kubelet/kubelet_pods.go, makeEnvironmentVariables: NewNotFound of the kubelet's secret manager",
    {"reason": "CreateContainerConfigError", "message": 'secret "milcore-none" not found'},
)
RIGHT = Recording(
    "kubernetes staging/src/k8s.io/apiserver/pkg/endpoints/handlers/responsewriters/errors.go, forbiddenMessage",
    {
        "message": 'rayjobs.ray.io is forbidden: User "system:serviceaccount:mil:default" cannot list resource '
        '"rayjobs" in API group "ray.io" in the namespace "mil"'
    },
)
POD_QUOTA = Recording(
    "kubernetes pkg/controller/controller_utils.go, createPods: FailedCreate; the error as of QUOTA",
    {
        "reason": "FailedCreate",
        "message": 'Error creating: pods "milcore-doctor-x7k2p" is forbidden: exceeded quota: conformance, requested: '
        "requests.memory=256Mi, used: requests.memory=6Gi, limited: requests.memory=6Gi",
    },
)
