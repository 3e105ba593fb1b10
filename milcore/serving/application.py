"""HTTP routes: the Open Inference Protocol v2, plain JSON, health and metrics.

It knows models by their descriptions and functions that score, and nothing of Ray. Every error is ``{"error": line}``.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

import numpy as np
from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from milcore import __version__
from milcore.config import ServeConfig
from milcore.errors import InputError
from milcore.serving.admission import Admission
from milcore.serving.authorisation import check_token
from milcore.serving.bag_request import BagRequest, check_bag, parse_plain, plain_answer
from milcore.serving.inference_protocol import (
    HEADER_LENGTH,
    Inference,
    check_outputs,
    inference_answer,
    model_metadata,
    parse_inference,
    server_metadata,
)
from milcore.serving.request_error import RequestError
from milcore.serving.score import Score
from milcore.serving.served_model import ServedModel
from milcore.serving.service_metrics import CONTENT_TYPE, ServiceMetrics

T = TypeVar("T")
# score of a bag by its features, coords where the model reads them, and number of instances to name; or an error's line
ScoreFunction = Callable[[np.ndarray, np.ndarray | None, int], Awaitable[Score | str]]
# models that have a replica, by name
Readiness = Callable[[], Awaitable[Mapping[str, bool]]]


class Models(NamedTuple):
    """Models of a service, by name.

    Args:
        served: descriptions.
        score: their functions.
        ready: which of them have a replica.
    """

    served: Mapping[str, ServedModel]
    score: Mapping[str, ScoreFunction]
    ready: Readiness


class Service:
    """State of a gateway: places in the queues, and metrics.

    Args:
        models: that are served.
        config: settings.
    """

    def __init__(self, models: Models, config: ServeConfig) -> None:
        self._models, self._config = models, config
        places = config.replicas * config.max_ongoing_requests + config.max_queued_requests
        self._admissions = {name: Admission(name, places) for name in models.served}
        self.metrics = ServiceMetrics(self._admissions)

    def model(self, name: str, version: str | None = None) -> ServedModel:
        """Description of a model.

        Raises:
            RequestError: 404, there is none of this name and version.
        """
        served = self._models.served
        if name not in served:
            raise RequestError(
                404, f"model: expected a model that is served, got {name!r}; allowed: {', '.join(served)}"
            )
        if version not in {None, served[name].version}:
            raise RequestError(
                404, f"version: expected one of {name}, got {version!r}; allowed: {served[name].version}, or none"
            )
        return served[name]

    async def readiness(self) -> Mapping[str, bool]:
        """Models that have a replica, by name."""
        return await self._models.ready()

    async def inference(self, name: str, version: str | None, request: Request) -> Response:
        """Answer to a request of the Open Inference Protocol."""

        def parse(body: bytearray) -> Inference:
            inference = parse_inference(body, request.headers.get(HEADER_LENGTH))
            check_outputs(model, inference)
            return inference

        model = self.model(name, version)
        with self._counted(name) as answered:
            inference, score = await self._score(model, request, parse, lambda inference: inference.bag)
            body, headers = inference_answer(model, inference, score)
            return answered(Response(body, headers=headers))

    async def plain(self, name: str, request: Request) -> Response:
        """Answer to a plain JSON request."""
        model = self.model(name)
        with self._counted(name) as answered:
            bag, score = await self._score(model, request, parse_plain, lambda bag: bag)
            return answered(JSONResponse(plain_answer(model, bag, score)))

    @contextlib.contextmanager
    def _counted(self, name: str) -> Iterator[Callable[[Response], Response]]:
        """Count the answer, or the error, of a request to a model."""

        def count(response: Response) -> Response:
            self.metrics.count_answer(name, response.status_code)
            return response

        try:
            yield count
        except InputError as error:
            self.metrics.count_answer(name, 400)
            raise RequestError(400, error.line) from None
        except RequestError as error:
            self.metrics.count_answer(name, error.status)
            raise
        except Exception:
            self.metrics.count_answer(name, 500)
            raise

    async def _score(
        self,
        model: ServedModel,
        request: Request,
        parse: Callable[[bytearray], T],
        bag_of: Callable[[T], BagRequest],
    ) -> tuple[T, Score]:
        """Read, parse and score a request within its time.

        Raises:
            InputError: it is none.
            RequestError: it is too large or too slow, the queue is full, or the replica was lost.
        """
        began = time.perf_counter()
        with self._admissions[model.name].place():
            late = RequestError(408, f"body: expected all of it within {self._config.timeout_s:g} s, got a part of it")
            try:
                async with asyncio.timeout(self._config.timeout_s):
                    body = await _read_body(request, int(self._config.max_request_mb * 1e6))
                    late = RequestError(504, f"no answer within {self._config.timeout_s:g} s; send it again later")
                    parsed = await asyncio.to_thread(parse, body)
                    bag = bag_of(parsed)
                    check_bag(model, bag)
                    count = (
                        self._config.attention_instances if bag.attention_instances is None else bag.attention_instances
                    )
                    coords = bag.coords if model.is_placed else None
                    score = await self._models.score[model.name](bag.features, coords, count)
            except TimeoutError:
                raise late from None
        if isinstance(score, str):
            raise InputError(score)
        self.metrics.count_score(model.name, score, len(bag.features), time.perf_counter() - began)
        return parsed, score


async def _read_body(request: Request, most: int) -> bytearray:
    """The body of a request, of at most so many bytes.

    Raises:
        RequestError: 413, it is larger; 415, it is compressed.
    """
    encoding = request.headers.get("Content-Encoding", "identity")
    if encoding != "identity":
        raise RequestError(415, f"Content-Encoding: expected identity, got {encoding}; send the body uncompressed")
    length = request.headers.get("Content-Length", "")
    too_large = RequestError(413, f"body: expected at most {most / 1e6:g} MB, got more; allowed: --max-request-mb")
    if length.isdecimal() and int(length) > most:
        raise too_large
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > most:
            raise too_large
    return body


def make_application(models: Models, config: ServeConfig, token_digest: str | None) -> FastAPI:
    """The HTTP application of a service.

    Args:
        models: that are served.
        config: settings.
        token_digest: SHA-256 of the bearer token of all routes but health; None: no token is needed.
    """
    service = Service(models, config)

    async def authorise(request: Request) -> None:
        check_token(token_digest, request.headers.get("Authorization"))

    application = FastAPI(title="milcore", version=__version__, docs_url=None, redoc_url=None, openapi_url=None)
    application.include_router(_health(service))
    application.include_router(_models(service), dependencies=[Depends(authorise)])
    application.add_exception_handler(RequestError, _request_error)
    application.add_exception_handler(HTTPException, _http_error)
    application.add_exception_handler(Exception, _fault)
    return application


def _health(service: Service) -> APIRouter:
    """Routes that probes ask, without a token."""
    router = APIRouter()

    @router.get("/v2/health/live")
    async def live() -> dict[str, bool]:
        return {"live": True}

    @router.get("/v2/health/ready")
    async def ready() -> Response:
        return _ready(all((await service.readiness()).values()))

    return router


def _ready(is_ready: bool) -> Response:
    return JSONResponse({"ready": is_ready}, 200 if is_ready else 503)


def _models(service: Service) -> APIRouter:
    """Routes of models and metrics."""
    router = APIRouter()

    @router.get("/metrics")
    async def metrics() -> Response:
        return Response(service.metrics.text(), headers={"Content-Type": CONTENT_TYPE})

    @router.get("/v2")
    @router.get("/v2/", include_in_schema=False)
    async def server() -> dict[str, Any]:
        return server_metadata(__version__)

    @router.get("/v2/models/{name}")
    @router.get("/v2/models/{name}/versions/{version}")
    async def metadata(name: str, version: str | None = None) -> dict[str, Any]:
        return model_metadata(service.model(name, version))

    @router.get("/v2/models/{name}/ready")
    @router.get("/v2/models/{name}/versions/{version}/ready")
    async def model_ready(name: str, version: str | None = None) -> Response:
        return _ready((await service.readiness())[service.model(name, version).name])

    @router.post("/v2/models/{name}/infer")
    @router.post("/v2/models/{name}/versions/{version}/infer")
    async def infer(name: str, request: Request, version: str | None = None) -> Response:
        return await service.inference(name, version, request)

    @router.get("/models/{name}")
    async def plain_metadata(name: str) -> dict[str, Any]:
        return service.model(name).metadata()

    @router.post("/models/{name}/predict")
    async def predict(name: str, request: Request) -> Response:
        return await service.plain(name, request)

    return router


async def _request_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)  # noqa: S101 - as it is registered
    return JSONResponse({"error": error.line}, error.status, error.headers)


async def _http_error(request: Request, error: Exception) -> Response:
    """Error of the routing: no such path, or no such method."""
    assert isinstance(error, HTTPException)  # noqa: S101 - as it is registered
    line = f"{request.method} {request.url.path}: {error.detail}"
    return JSONResponse({"error": line}, error.status_code, error.headers)


async def _fault(_: Request, __: Exception) -> Response:
    """Error of the code, which the log of the gateway has."""
    return JSONResponse({"error": "internal error; the log of the service has it"}, 500)
