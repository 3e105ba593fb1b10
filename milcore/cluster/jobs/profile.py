"""What a cluster made for one job looks like: nodes, queue, image, secrets, deadlines; a file of the platform team."""

from typing import Annotated, Any

import yaml
from pydantic import Field, PositiveInt

from milcore import __version__
from milcore.config import Config, LaunchConfig, parse_config
from milcore.errors import InputError
from milcore.runtime import storage

Name = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$")]


class Nodes(Config):
    """Workers of one kind, each a pod with a node's worth of resources."""

    cpus: PositiveInt = Field(4, description="CPUs of a node")
    memory_gib: PositiveInt = Field(16, description="memory of a node, GiB")
    gpus: int = Field(0, ge=0, description="GPUs (nvidia.com/gpu) of a node")
    min_nodes: int = Field(0, ge=0, description="nodes that are there from the start")
    max_nodes: PositiveInt = Field(4, description="most nodes of one job")
    node_selector: dict[str, str] = Field({}, description="labels that a node must bear")
    tolerations: tuple[dict[str, Any], ...] = Field((), description="taints that do not keep the pods off, as in a pod")

    def needed(self, workers: int) -> int:
        """Nodes for so many Ray workers of one CPU, and one GPU where the nodes have some.

        Raises:
            InputError: more than ``max_nodes``.
        """
        slots = self.gpus or self.cpus
        nodes = -(-workers // slots)
        if nodes > self.max_nodes:
            raise InputError(
                f"workers {workers} need {nodes} nodes of {slots}; allowed: max_nodes {self.max_nodes} of the cluster "
                f"profile, {self.max_nodes * slots} workers; lower workers or raise max_nodes"
            )
        return nodes


GPU_TAINT = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}


class ClusterProfile(Config):
    """Everything about the cluster of a ``rayjob`` that the work itself does not say."""

    image: str = Field(f"milcore:{__version__}", description="image of the Ray pods, unless the step says its own")
    image_pull_policy: str | None = Field(None, pattern="^(Always|IfNotPresent|Never)$")
    image_pull_secrets: tuple[Name, ...] = ()
    service_account: Name = Field("milcore-ray", description="whom the Ray pods run as")
    s3_secret: Name = Field("milcore-s3", description="Secret with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
    storage_config: Name = Field("milcore-storage", description="ConfigMap with AWS_ENDPOINT_URL, AWS_DEFAULT_REGION")
    queue: Name | None = Field(None, description="Kueue local queue; a queued cluster has its full size from the start")
    priority_class: Name | None = Field(None, description="priorityClassName of the pods")
    head_cpus: PositiveInt = Field(2, description="CPUs of the head, which runs the driver and no work")
    head_memory_gib: PositiveInt = Field(8, description="memory of the head, GiB")
    head_node_selector: dict[str, str] = Field({}, description="labels that the head's node must bear")
    cpu_nodes: Nodes = Nodes()
    gpu_nodes: Nodes = Nodes(gpus=1, max_nodes=2, tolerations=(GPU_TAINT,))
    tmp_gib: PositiveInt = Field(20, description="scratch space of a pod, GiB")
    shm_gib: PositiveInt = Field(2, description="shared memory of a pod, GiB, part of its memory")
    active_deadline_s: PositiveInt = Field(24 * 3600, description="the job is ended after so long, seconds")
    pre_running_deadline_s: PositiveInt = Field(
        6 * 3600, description="it is given up if it does not run by then, seconds"
    )
    submitter_retries: int = Field(2, ge=0, description="submissions tried again")
    kept_s: int = Field(0, ge=0, description="the nodes of an ended job are kept so long, to look into it, seconds")

    @property
    def autoscaling(self) -> bool:
        """Whether nodes come when work asks for them: not in a queue, which admits the whole job at once."""
        return self.queue is None


def read_profile(launch: LaunchConfig) -> ClusterProfile:
    """The profile that the launch settings name; without one, the defaults.

    Raises:
        InputError: nothing is there, or it is not a profile.
    """
    uri = launch.cluster_profile
    if not uri:
        return ClusterProfile()
    try:
        values = yaml.safe_load(storage.read_bytes(uri))
    except FileNotFoundError:
        raise InputError(f"cluster_profile: nothing at {uri}; allowed: a YAML or JSON file, or empty") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"cluster_profile: {uri} is not YAML ({reason}); allowed: YAML or JSON") from None
    if not isinstance(values, dict):
        raise InputError(f"cluster_profile: {uri} holds no mapping; allowed: names of ClusterProfile and their values")
    return parse_config(ClusterProfile, values)
