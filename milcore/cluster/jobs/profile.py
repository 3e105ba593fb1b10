"""Cluster profile of a RayJob: nodes, queue, image, secrets and deadlines.

A file that the platform team writes once for all steps.
"""

from typing import Annotated, Any

import yaml
from pydantic import Field, PositiveInt

from milcore import __version__
from milcore.config import Config, LaunchConfig, parse_config
from milcore.errors import InputError
from milcore.runtime import storage

Name = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$")]
ResourceName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]*/[A-Za-z0-9][A-Za-z0-9._-]*$")]


class Nodes(Config):
    """A worker group: pods of one kind, each with the resources of one node."""

    cpus: PositiveInt = Field(4, description="CPUs of a node")
    memory_gib: PositiveInt = Field(16, description="memory of a node, GiB")
    gpus: int = Field(0, ge=0, description="GPUs, or parts of GPUs, of a node: as many of gpu_resource")
    gpu_resource: ResourceName = Field(
        "nvidia.com/gpu", description="the device plugin's resource; of a part by MIG such as nvidia.com/mig-3g.40gb"
    )
    min_nodes: int = Field(0, ge=0, description="nodes at the start, where nodes are added on request")
    max_nodes: PositiveInt = Field(4, description="most nodes of one job")
    node_selector: dict[str, str] = Field({}, description="labels that a node must have")
    tolerations: tuple[dict[str, Any], ...] = Field(
        (), description="tolerations of the pods, as in a pod's spec; spot nodes mostly need one"
    )
    runtime_class: Name | None = Field(
        None, description="runtimeClassName of the pods, such as nvidia where that runtime is not the nodes' default"
    )

    def nodes_for(self, workers: int, setting: str = "workers") -> int:
        """Number of nodes that hold the Ray workers.

        A worker takes one GPU where the nodes have some, else one CPU.

        Args:
            workers: how many.
            setting: that counts them.

        Raises:
            InputError: more than ``max_nodes``.
        """
        slots = self.gpus or self.cpus
        nodes = -(-workers // slots)
        if nodes > self.max_nodes:
            raise InputError(
                f"{setting}: expected at most {self.max_nodes * slots}, got {workers}, which need {nodes} nodes of "
                f"{slots}; allowed: max_nodes {self.max_nodes} of the cluster profile; lower {setting} or raise "
                "max_nodes"
            )
        return nodes


GPU_TAINT = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}


class ClusterProfile(Config):
    """Settings of a RayJob's cluster that do not depend on the step it runs."""

    image: str = Field(f"milcore:{__version__}", description="image of the Ray pods where MILCORE_IMAGE is not set")
    image_pull_policy: str | None = Field(None, pattern="^(Always|IfNotPresent|Never)$")
    image_pull_secrets: tuple[Name, ...] = ()
    service_account: Name = Field("milcore-ray", description="service account of the Ray pods")
    s3_secret: Name = Field("milcore-s3", description="Secret with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
    storage_config: Name = Field("milcore-storage", description="ConfigMap with AWS_ENDPOINT_URL, AWS_DEFAULT_REGION")
    queue: Name | None = Field(None, description="Kueue local queue; a queued cluster has its full size from the start")
    priority_class: Name | None = Field(None, description="priorityClassName of the pods")
    head_cpus: PositiveInt = Field(2, description="CPUs of the head, which runs the driver and no work")
    head_memory_gib: PositiveInt = Field(8, description="memory of the head, GiB")
    head_node_selector: dict[str, str] = Field({}, description="labels that the head's node must have")
    cpu_nodes: Nodes = Nodes()
    gpu_nodes: Nodes = Nodes(gpus=1, max_nodes=2, tolerations=(GPU_TAINT,))
    tmp_gib: PositiveInt = Field(20, description="scratch space of a pod, GiB; a sweep keeps 8 GB of features there")
    shm_gib: PositiveInt = Field(2, description="shared memory of a pod, GiB, part of its memory")
    active_deadline_s: PositiveInt = Field(24 * 3600, description="seconds after which the job is ended")
    pre_running_deadline_s: PositiveInt = Field(
        6 * 3600, description="seconds after which a job that does not run yet, or has no worker, fails"
    )
    submitter_retries: int = Field(2, ge=0, description="retries of the job's submission")
    kept_s: int = Field(0, ge=0, description="seconds that the nodes of an ended job are kept for inspection")

    @property
    def autoscaling(self) -> bool:
        """Nodes are added when workers request them.

        False in a queue, which admits whole jobs.
        """
        return self.queue is None

    def nodes(self, *, use_gpu: bool) -> Nodes:
        """Nodes of a job's workers."""
        return self.gpu_nodes if use_gpu else self.cpu_nodes


def read_profile(launch: LaunchConfig) -> ClusterProfile:
    """Read the profile that the launch settings name; without one, the defaults.

    Raises:
        InputError: the file is missing, or is not a profile.
    """
    uri = launch.cluster_profile
    if not uri:
        return ClusterProfile()
    try:
        values = yaml.safe_load(storage.read_bytes(uri))
    except FileNotFoundError:
        raise InputError(
            f"cluster_profile: expected a file, got nothing at {uri}; allowed: a YAML or JSON file, or empty"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"cluster_profile: expected YAML or JSON, got {uri} ({reason}); allowed: fields of ClusterProfile"
        ) from None
    if not isinstance(values, dict):
        raise InputError(
            f"cluster_profile: expected a mapping, got a {type(values).__name__} in {uri}; allowed: fields of "
            "ClusterProfile"
        )
    return parse_config(ClusterProfile, values)
