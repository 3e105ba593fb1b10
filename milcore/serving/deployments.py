"""Deployments of Ray Serve: the gateway, and the replicas of each model behind it."""

import contextlib
import io
import logging
import math
from collections.abc import Iterator, Sequence
from typing import Any

from ray import serve
from ray.serve.config import BackpressureConfig, HTTPOptions, ProxyLocation
from ray.serve.exceptions import RayServeException
from ray.serve.schema import LoggingConfig

from milcore.cluster.workers.capacity import node_resources
from milcore.config import ServeConfig
from milcore.errors import ClusterError, InputError
from milcore.runtime.limits import cpus
from milcore.serving.admission import RETRY_AFTER_S
from milcore.serving.gateway import APPLICATION, Gateway, deployment_name
from milcore.serving.replica import Replica
from milcore.serving.served_model import ServedModel

LOG = LoggingConfig(log_level="WARNING", enable_access_log=False)
# beside requests to models, which the gateway counts itself: health, metadata, metrics, and those that it refuses
OTHER_REQUESTS = 200
# of every deployment; a pod has 30 s to end
SETTINGS: dict[str, Any] = {
    "graceful_shutdown_timeout_s": 10.0,
    "graceful_shutdown_wait_loop_s": 0.1,
    "health_check_period_s": 2.0,
    "max_constructor_retry_count": 1,
}


@contextlib.contextmanager
def running(served: Sequence[ServedModel], config: ServeConfig, token_digest: str | None) -> Iterator[None]:
    """Serve models on the connected cluster for the length of the context.

    Args:
        served: the models.
        config: settings.
        token_digest: SHA-256 of the bearer token; None: none is needed.

    Raises:
        InputError: the machine has fewer GPUs than replicas.
        ClusterError: Ray Serve does not start.
    """
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    replicas = config.replicas * len(served)
    deployment_of_model = serve.deployment(
        num_replicas=config.replicas,
        ray_actor_options=_resources(replicas, config),
        max_ongoing_requests=config.max_ongoing_requests,
        **SETTINGS,
    )(Replica)
    handles = {
        model.name: deployment_of_model.options(name=deployment_name(model.name)).bind(
            model.run, use_gpu=config.use_gpu, instances_per_batch=config.instances_per_batch, workers_here=replicas
        )
        for model in served
    }
    places = len(served) * (config.replicas * config.max_ongoing_requests + config.max_queued_requests)
    gateway = serve.deployment(
        name="gateway",
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=places + OTHER_REQUESTS,
        max_queued_requests=OTHER_REQUESTS,
        backpressure_config=BackpressureConfig(status_code=429, retry_after_s=RETRY_AFTER_S),
        **SETTINGS,
    )(serve.ingress()(Gateway))
    try:
        try:
            serve.start(
                proxy_location=ProxyLocation.HeadOnly,
                http_options=HTTPOptions(host=config.host, port=config.port),
                logging_config=LOG,
            )
            serve.run(gateway.bind(list(served), handles, config, token_digest), name=APPLICATION, logging_config=LOG)
        except (RuntimeError, RayServeException) as error:
            raise ClusterError(f"Ray Serve did not start the models ({' '.join(str(error).split())})") from error
        yield
    finally:
        # Ray tells of the controller, which ends itself, as of an actor that was lost
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            serve.shutdown()  # type: ignore[no-untyped-call]  # Ray has no types for it


def _resources(replicas: int, config: ServeConfig) -> dict[str, float]:
    """Resources that a replica reserves.

    Raises:
        InputError: there are fewer GPUs than replicas.
    """
    if config.use_gpu:
        gpus = int(sum(node.get("GPU", 0) for node in node_resources()))
        if gpus < replicas:
            raise InputError(
                f"replicas: expected at most one for each GPU, got {replicas} on {gpus}; allowed: {gpus} for all "
                "models together; take fewer, or leave --use-gpu out"
            )
        return {"num_cpus": 0, "num_gpus": 1}
    share = cpus() / replicas
    return {"num_cpus": math.floor(share) if share >= 1 else share}
