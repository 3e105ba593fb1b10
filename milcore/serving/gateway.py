"""Gateway: the deployment of Ray Serve that answers HTTP requests."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from milcore.config import ServeConfig
from milcore.serving.admission import RETRY_AFTER_S
from milcore.serving.application import Models, ScoreFunction, make_application
from milcore.serving.request_error import RequestError
from milcore.serving.score import Score
from milcore.serving.served_model import ServedModel

APPLICATION = "milcore"


class Gateway:
    """Deployment that answers HTTP requests; one process, whose counts are those of the service.

    Args:
        served: the models.
        handles: of their replicas, by name.
        config: settings.
        token_digest: SHA-256 of the bearer token; None: none is needed.
    """

    def __init__(
        self,
        served: Sequence[ServedModel],
        handles: Mapping[str, DeploymentHandle[Any]],
        config: ServeConfig,
        token_digest: str | None,
    ) -> None:
        self._served = {model.name: model for model in served}
        self._handles, self._config, self._token_digest = handles, config, token_digest

    def __serve_build_asgi_app__(self) -> FastAPI:
        """The HTTP application; Ray Serve calls this once."""
        functions = {name: _score_by(handle) for name, handle in self._handles.items()}
        return make_application(Models(self._served, functions, self._ready), self._config, self._token_digest)

    async def _ready(self) -> dict[str, bool]:
        """Models with a replica that runs, by name."""
        applications = (await asyncio.to_thread(serve.status)).applications
        if APPLICATION not in applications:
            return dict.fromkeys(self._served, False)
        deployments = applications[APPLICATION].deployments
        states = {name: deployments[deployment_name(name)].replica_states for name in self._served}
        return {name: any(state == "RUNNING" for state in of_model) for name, of_model in states.items()}


def _score_by(handle: DeploymentHandle[Any]) -> ScoreFunction:
    """Function that scores by the replicas of a model."""

    async def score(features: np.ndarray, coords: np.ndarray | None, attention_instances: int) -> Score | str:
        response = handle.score.remote(features, coords, attention_instances)
        try:
            answer: Score | str = await response
        except asyncio.CancelledError:
            response.cancel()  # type: ignore[no-untyped-call]  # Ray has no types for it
            raise
        except (RayActorError, RayServeException):
            raise RequestError(
                503, "the replica was lost; send it again", {"Retry-After": str(RETRY_AFTER_S)}
            ) from None
        return answer

    return score


def deployment_name(model: str) -> str:
    """Name of the deployment with the replicas of a model."""
    return f"model-{model}"
