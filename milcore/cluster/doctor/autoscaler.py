"""Autoscaler of a cluster, which may add a node where none has room."""

import contextlib

from kubernetes.client.exceptions import ApiException

from milcore.cluster.doctor.api_server import NO_ANSWER, ApiServer

# name -> path that is there with it: the status that the first writes, and the API of the second
AUTOSCALERS = {
    "cluster-autoscaler": "/api/v1/namespaces/kube-system/configmaps/cluster-autoscaler-status",
    "Karpenter": "/apis/karpenter.sh/v1",
}
# reason of cluster-autoscaler's event about a pod for which no node group has a node
NO_NODE = "NotTriggerScaleUp"
LATER = "run this again in some minutes; `kubectl get events` tells what the autoscaler does"


def autoscaler(api: ApiServer) -> str | None:
    """Name of the cluster's autoscaler; None where the caller sees none."""
    for name, path in AUTOSCALERS.items():
        with contextlib.suppress(ApiException, *NO_ANSWER):
            api.get(path)
            return name
    return None


def scaler_of_pod(api: ApiServer, pod: str) -> str | None:
    """Name of the autoscaler that may add a node for a pod.

    None where there is none, or it says that it adds none.
    """
    with contextlib.suppress(ApiException, *NO_ANSWER):
        events = api.get(api.of_namespace("events"), fieldSelector=f"involvedObject.name={pod}")["items"]
        if any(event.get("reason") == NO_NODE for event in events):
            return None
    return autoscaler(api)
