"""Answers over HTTP are predict's numbers, and what cannot be answered is an error of one line."""

import asyncio
import json
from collections.abc import AsyncIterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi import FastAPI

from milcore.config import ServeConfig, TrainConfig
from milcore.errors import InputError
from milcore.serving.application import Models, make_application
from milcore.serving.served_model import ServedModel
from milcore.serving.served_runs import served_models
from milcore.store.store import PatchStore
from tests.cohorts import as_folds, write_store
from tests.evaluation.regression_store import TRAIN as REGRESSION
from tests.evaluation.regression_store import regression_store
from tests.evaluation.survival_store import train as train_survival
from tests.evaluation.test_predict_store import TRAIN, train
from tests.serving.asgi import Reply, parts_of, send
from tests.serving.bodies import HEADER_LENGTH, binary_outputs, binary_request, json_outputs, json_request
from tests.serving.conftest import SLIDES, application_of, attention_of, columns_of, features_of, predicted

SECRET = "0123456789abcdef" * 2
DIGEST = sha256(SECRET.encode()).hexdigest()
INFER = "/v2/models/run/infer"
PREDICT = "/models/run/predict"
BAG = np.full((2, 3), 0.5, np.float32)


def post(application: FastAPI, path: str, body: Any, headers: dict[str, str] | None = None) -> Reply:
    return asyncio.run(send(application, "POST", path, body, headers))


def get(application: FastAPI, path: str, headers: dict[str, str] | None = None) -> Reply:
    return asyncio.run(send(application, "GET", path, headers=headers))


def slide_ids() -> list[str]:
    return [f"s{k:02d}" for k in range(SLIDES)]


# --- numbers


def test_plain_json_gives_predict_s_numbers_to_the_bit(
    application: FastAPI, cohort: Path, rows: dict[str, dict[str, Any]]
) -> None:
    for slide_id in slide_ids():
        features = features_of(cohort, slide_id)
        reply = post(application, PREDICT, json.dumps({"features": features.tolist()}).encode())
        answer = reply.json()
        assert reply.status == 200
        assert answer["prediction"] == columns_of(rows[slide_id])
        assert (answer["status"], answer["reason"], answer["patches"]) == ("ok", None, len(features))


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_binary_tensors_give_predict_s_numbers_to_the_bit(
    application: FastAPI, cohort: Path, rows: dict[str, dict[str, Any]], dtype: type
) -> None:
    for slide_id in slide_ids():
        body, headers = binary_request(features=features_of(cohort, slide_id).astype(dtype))
        reply = post(application, INFER, body, headers)
        assert reply.status == 200
        outputs = binary_outputs(reply.body, reply.headers[HEADER_LENGTH.lower()])
        known = {name: [value] for name, value in columns_of(rows[slide_id]).items() if value is not None}
        assert {name: outputs[name] for name in known} == known
        assert set(outputs) == {*known, "attention_instance", "attention_weight"}


def test_json_tensors_are_the_binary_ones(application: FastAPI, cohort: Path) -> None:
    features, coords = features_of(cohort, "s03").astype(np.float32), np.arange(12).reshape(6, 2)
    body, headers = binary_request(features=features, coords=coords)
    binary = post(application, INFER, body, headers)
    plain = post(application, INFER, json_request(features=features, coords=coords))
    outputs = binary_outputs(binary.body, binary.headers[HEADER_LENGTH.lower()])
    assert {name: np.ravel(value).tolist() for name, value in outputs.items()} == json_outputs(plain.json())
    assert plain.headers["content-type"] == "application/json"
    assert outputs["attention_coords"] == [[2.0 * k, 2.0 * k + 1] for k in outputs["attention_instance"]]


def test_the_instances_of_highest_attention_are_predict_s(
    application: FastAPI, cohort: Path, rows: dict[str, dict[str, Any]]
) -> None:
    features, weights = features_of(cohort, "s01"), attention_of(cohort, "s01")
    values = {"features": features.tolist(), "coords": [[10 * k, k] for k in range(6)], "attention_instances": 4}
    attention = post(application, PREDICT, json.dumps(values).encode()).json()["attention"]
    order = sorted(range(6), key=lambda k: -weights[k])[:4]
    assert [row["instance"] for row in attention] == order
    np.testing.assert_allclose([row["weight"] for row in attention], weights[order], rtol=1e-6)
    assert [row["coords"] for row in attention] == [[10.0 * k, float(k)] for k in order]
    nothing = post(application, PREDICT, json.dumps(values | {"attention_instances": 0}).encode()).json()
    assert nothing["attention"] == []


def test_bags_that_wait_together_differ_by_rounding_only(cohort: Path, rows: dict[str, dict[str, Any]]) -> None:
    application = application_of([str(cohort / "run")], ServeConfig())

    async def all_at_once() -> list[Reply]:
        bodies = [json.dumps({"features": features_of(cohort, slide_id).tolist()}).encode() for slide_id in slide_ids()]
        return await asyncio.gather(*(send(application, "POST", PREDICT, body) for body in bodies))

    for slide_id, reply in zip(slide_ids(), asyncio.run(all_at_once()), strict=True):
        answer = reply.json()["prediction"]
        for name in ("probability", "calibrated"):
            assert answer[name] == pytest.approx(rows[slide_id][name], abs=1e-6)


def test_survival_and_folds_give_their_columns(survival: Path, cohort: Path, tmp_path: Path) -> None:
    rows = predicted(survival / "run", survival / "store", tmp_path / "survival")
    body = json.dumps({"features": features_of(survival, "s04").tolist()}).encode()
    application = application_of([str(survival / "run")])
    assert post(application, PREDICT, body).json()["prediction"] == columns_of(rows["s04"])

    folds = as_folds([str(cohort / "run"), str(cohort / "other")], str(tmp_path / "folds"))
    rows = predicted(Path(folds), cohort / "store", tmp_path / "of-folds")
    body = json.dumps({"features": features_of(cohort, "s05").tolist()}).encode()
    answer = post(application_of([folds]), "/models/folds/predict", body).json()
    assert answer["prediction"] == columns_of(rows["s05"])
    assert answer["prediction"]["spread"] > 0


def test_regression_gives_its_value(tmp_path: Path) -> None:
    run = train_survival(regression_store(str(tmp_path / "store")), str(tmp_path / "run"), REGRESSION)
    rows = predicted(Path(run), tmp_path / "store", tmp_path / "out")
    body = json.dumps({"features": features_of(tmp_path, "s04").tolist()}).encode()
    answer = post(application_of([run]), PREDICT, body).json()
    assert answer["prediction"] == columns_of(rows["s04"])
    assert 40 < answer["prediction"]["predicted_value"] < 70


def test_a_pooling_that_reads_places_takes_them_from_coords(cohort: Path, tmp_path: Path) -> None:
    store = PatchStore(str(cohort / "store"))
    config = TrainConfig(features="mean_rgb", pooling="transmil", hidden=8, pooling_heads=2, epochs=1)
    run = Path(train(store, str(tmp_path / "run"), config))
    rows, application = predicted(run, cohort / "store", tmp_path / "out"), application_of([str(run)])
    features, coords = features_of(cohort, "s03").tolist(), store.slide("s03").coords.tolist()
    for order in (1, -1):
        body = json.dumps({"features": features[::order], "coords": coords[::order]}).encode()
        assert post(application, PREDICT, body).json()["prediction"] == columns_of(rows["s03"])
    reply = post(application, PREDICT, json.dumps({"features": features}).encode())
    assert (reply.status, reply.error) == (
        400, "coords: expected those of every instance, whose places the pooling reads, got none; send them",
    )  # fmt: skip
    of_patients = train(store, str(tmp_path / "patients"), config.model_copy(update={"bag": "patient"}))
    with pytest.raises(InputError, match="expected a run on slides with pooling transmil, which reads places, got one"):
        served_models([of_patients])


# --- what models say of themselves


def test_digests_and_metadata(application: FastAPI, cohort: Path) -> None:
    answer = post(application, PREDICT, json.dumps({"features": BAG.tolist()}).encode()).json()
    models = b"".join(path.read_bytes() for path in [cohort / "run" / "model.safetensors"])
    assert answer["models_sha256"] == sha256(models).hexdigest()
    assert answer["encoder"]["weights_digest"] == "0" * 64
    assert answer["notice"].startswith("Research use only")
    metadata = get(application, "/v2/models/run").json()
    assert metadata["inputs"][0] == {"name": "features", "datatype": "FP32", "shape": [-1, 3]}
    assert metadata["versions"] == [answer["models_sha256"][:12]]
    types = {output["name"]: output["datatype"] for output in metadata["outputs"]}
    assert types == {
        "called": "BYTES", "probability": "FP64", "calibrated": "FP64", "attention_instance": "INT64",
        "attention_weight": "FP64", "attention_coords": "FP64",
    }  # fmt: skip
    # the second run is not evaluated, so that it has no rule
    second = {output["name"] for output in get(application, "/v2/models/second").json()["outputs"]}
    assert {"probability"} == second & {"called", "probability", "calibrated"}
    assert get(application, f"/v2/models/run/versions/{metadata['versions'][0]}").json() == metadata
    assert get(application, "/models/run").json()["classes"] == ["0", "1"]
    assert get(application, "/v2").json()["extensions"] == ["binary_tensor_data"]
    assert get(application, "/v2/models/run/ready").json() == {"ready": True}


def test_outputs_that_are_named_come_alone_and_the_id_comes_back(application: FastAPI) -> None:
    outputs = [{"name": "probability", "parameters": {"binary_data": True}}, {"name": "called"}]
    reply = post(application, INFER, request(id="a7", outputs=outputs))
    header = json.loads(reply.body[: int(reply.headers[HEADER_LENGTH.lower()])])
    assert (header["id"], header["model_name"]) == ("a7", "run")
    assert [output["name"] for output in header["outputs"]] == ["probability", "called"]
    assert header["outputs"][0]["parameters"] == {"binary_data_size": 8}
    assert len(reply.body) == int(reply.headers[HEADER_LENGTH.lower()]) + 8
    assert header["outputs"][1]["data"][0] in {"0", "1"}


@pytest.mark.parametrize(("encoder", "same_encoder"), [("0" * 64, False), (None, True)])
def test_an_encoder_that_is_stated_is_compared(application: FastAPI, encoder: str | None, same_encoder: bool) -> None:
    plain = post(application, PREDICT, json.dumps({"features": BAG.tolist(), "encoder": encoder}).encode()).json()
    body, headers = binary_request({} if encoder is None else {"encoder": encoder}, features=BAG)
    reply = post(application, INFER, body, headers)
    header = json.loads(reply.body[: int(reply.headers[HEADER_LENGTH.lower()])])
    assert plain["same_encoder"] == header["parameters"]["same_encoder"] == same_encoder


# --- what is refused


def tensor(**changes: Any) -> bytes:
    """A request of one tensor, changed."""
    values = {"name": "features", "shape": [2, 3], "datatype": "FP32", "data": BAG.tolist()}
    return json.dumps(
        {"inputs": [{name: value for name, value in (values | changes).items() if value is not None}]}
    ).encode()


def request(**changes: Any) -> bytes:
    return json.dumps(json.loads(tensor()) | changes).encode()


TENSORS = json.loads(tensor())["inputs"]
COORDS = {"name": "coords", "shape": [1, 2], "datatype": "INT32", "data": [1, 2]}
BINARY, BINARY_HEADERS = binary_request(features=BAG)
INFERENCES = [
    (b"", {}, "body: expected a JSON object, got other bytes"),
    (b"[]", {}, "body: expected a JSON object, got a list"),
    (b"\xff\xfe{}", {}, "body: expected a JSON object, got other bytes"),
    (b"[" * 100_000, {}, "body: expected a JSON object, got other bytes"),
    (b"{}", {}, "inputs: expected a value, got none"),
    (b'{"inputs": []}', {}, "inputs: expected features, and coords or none, got none"),
    (b'{"inputs": [1]}', {}, "inputs.0: "),
    (request(inptus=[]), {}, "inptus: expected a setting, got 'inptus'; allowed: id, parameters, inputs, outputs"),
    (tensor(name="x"), {}, "inputs: expected features, and coords or none, got x"),
    (request(inputs=2 * TENSORS), {}, "inputs: expected features, and coords or none, got features, features"),
    (tensor(datatype="BYTES"), {}, "inputs.0.datatype: expected 'FP16', 'FP32'"),
    (tensor(datatype="INT64"), {}, "features: expected floating-point numbers, got INT64; allowed: FP16, FP32"),
    (tensor(shape=[3, 2]), {}, "features: expected shape (n, 3) with n from 1, got (3, 2)"),
    (tensor(shape=[6]), {}, "features: expected shape (n, 3) with n from 1, got (6,)"),
    (tensor(shape=[2, 4]), {}, "features: expected 8 values of shape [2, 4], got 6"),
    (tensor(shape=[-1, 3]), {}, "inputs.0.shape.0: expected greater than or equal to 0, got -1"),
    (tensor(shape=[0, 3], data=[]), {}, "features: expected shape (n, 3) with n from 1, got (0, 3)"),
    (tensor(shape=[10**30, 10**30]), {}, "features: expected 1000"),
    (tensor(data=None), {}, "features: expected data or binary_data_size, got neither"),
    (tensor(data=[["a", 1, 2], [3, 4, 5]]), {}, "features: expected lists of numbers, got other values among them"),
    (tensor(data=[[None, 1, 2], [3, 4, 5]]), {}, "features: expected lists of numbers, got other values among them"),
    (tensor(data=[[True, True, False]] * 2), {}, "features: expected lists of numbers, got other values among them"),
    (tensor(data=[[1], [1, 2, 3, 4, 5]]), {}, "features: expected lists of numbers, got rows of several lengths"),
    (tensor(data=[[float("nan"), 1, 2], [3, 4, 5]]), {}, "arrays: bag 'features': expected finite numbers, got nan"),
    (tensor(data=[[1e300, 1, 2], [3, 4, 5]]), {}, "arrays: bag 'features': expected finite numbers, got inf"),
    (tensor(parameters={"binary_data_size": 24}), {}, "features: expected 24 bytes of FP32 [2, 3], got"),
    (BINARY, {}, "body: expected a JSON object, got other bytes"),
    (BINARY[:-1], BINARY_HEADERS, "features: expected 24 bytes of FP32 [2, 3], got binary_data_size 24 of 23"),
    (BINARY + b"\0", BINARY_HEADERS, f"body: expected {len(BINARY)} bytes as the inputs say, got {len(BINARY) + 1}"),
    (BINARY, {HEADER_LENGTH: "99999"}, "Inference-Header-Content-Length: expected the bytes of the JSON, at most"),
    (BINARY, {HEADER_LENGTH: "-1"}, "Inference-Header-Content-Length: expected the bytes of the JSON, at most"),
    (request(outputs=[{"name": "logit"}]), {}, "outputs: expected outputs of the model, got 'logit'; allowed: "),
    (request(parameters={"attention_instances": -1}), {}, "attention_instances: expected a number of instances"),
    (request(parameters={"attention_instances": True}), {}, "attention_instances: expected a number of instances"),
    (request(parameters={"encoder": "1" * 64}), {}, f"encoder: expected that of the run's features, {'0' * 64}, got"),
    (request(parameters={"encoder": 3}), {}, "encoder: expected a text, got 3"),
    (request(inputs=[*TENSORS, COORDS]), {}, "coords: expected shape (2, 2), got (1, 2)"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "headers", "line"), INFERENCES)
def test_a_malformed_inference_is_400_and_one_line(
    application: FastAPI, body: bytes, headers: dict[str, str], line: str
) -> None:
    reply = post(application, INFER, body, headers)
    assert reply.error.startswith(line)
    assert reply.status == 400


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({}, "features: expected a value, got none"),
        ({"features": []}, "features: expected shape (n, 3) with n from 1, got (0,)"),
        ({"features": [[]]}, "features: expected shape (n, 3) with n from 1, got (1, 0)"),
        ({"features": [1, 2, 3]}, "features: expected shape (n, 3) with n from 1, got (3,)"),
        ({"features": [[1, 2]]}, "features: expected shape (n, 3) with n from 1, got (1, 2)"),
        ({"features": {"a": 1}}, "features: expected lists of numbers, got other values"),
        ({"features": [[1, 2, "x"]]}, "features: expected lists of numbers, got other values"),
        ({"features": [[1, 2, 3]], "coords": [[1, 2, 3]]}, "coords: expected shape (1, 2), got (1, 3)"),
        ({"features": [[1, 2, 3]], "attention_instances": -1}, "attention_instances: expected greater than or"),
        ({"features": [[1, 2, 3]], "encoder": "uni"}, "encoder: expected that of the run's features"),
        ({"features": [[1, 2, 3]], "slide": "x"}, "slide: expected a setting, got 'slide'; allowed: features, coords"),
    ],
)  # fmt: skip
def test_a_malformed_plain_request_is_400_and_one_line(application: FastAPI, values: object, line: str) -> None:
    reply = post(application, PREDICT, json.dumps(values).encode())
    assert reply.error.startswith(line)
    assert reply.status == 400


@pytest.mark.parametrize(
    ("method", "path", "status", "line"),
    [
        (
            "POST",
            "/v2/models/none/infer",
            404,
            "model: expected a model that is served, got 'none'; allowed: run, second",
        ),
        ("GET", "/v2/models/none", 404, "model: expected a model that is served, got 'none'"),
        ("GET", "/models/none", 404, "model: expected a model that is served, got 'none'"),
        ("GET", "/v2/models/run/versions/7/ready", 404, "version: expected one of run, got '7'; allowed: "),
        ("GET", "/v3", 404, "GET /v3: Not Found"),
        ("GET", INFER, 405, f"GET {INFER}: Method Not Allowed"),
    ],
)
def test_a_path_that_is_none_is_one_line(application: FastAPI, method: str, path: str, status: int, line: str) -> None:
    reply = asyncio.run(send(application, method, path))
    assert reply.error.startswith(line)
    assert reply.status == status


def test_a_body_that_is_too_large_is_413_and_a_compressed_one_415(cohort: Path) -> None:
    application = application_of([str(cohort / "run")], ServeConfig(max_request_mb=0.001))
    assert post(application, INFER, tensor()).status == 200
    for body, headers in [
        (b"x" * 1001, {}), (parts_of(b"x" * 600, b"x" * 600), {}), (parts_of(), {"content-length": "1001"}),
    ]:  # fmt: skip
        reply = post(application, INFER, body, headers)
        assert reply.error == "body: expected at most 0.001 MB, got more; allowed: --max-request-mb"
        assert reply.status == 413
    reply = post(application, INFER, tensor(), {"content-encoding": "gzip"})
    assert (reply.status, reply.error) == (
        415, "Content-Encoding: expected identity, got gzip; send the body uncompressed",
    )  # fmt: skip


def test_all_but_health_needs_the_token(cohort: Path) -> None:
    application = application_of([str(cohort / "run")], token_digest=DIGEST)
    paths = [("GET", path) for path in ("/v2", "/metrics", "/v2/models/run", "/v2/models/run/ready", "/models/run")]
    for method, path in [*paths, ("POST", INFER), ("POST", PREDICT), ("GET", "/v2/models/none")]:
        for headers in ({}, {"authorization": "Bearer " + "f" * 32}):
            reply = asyncio.run(send(application, method, path, tensor(), headers))
            assert (reply.status, reply.headers["www-authenticate"]) == (401, "Bearer")
            assert reply.error.startswith("Authorization: expected Bearer and the service's token, got")
    authorised = {"authorization": f"Bearer {SECRET}"}
    assert post(application, INFER, tensor(), authorised).status == 200
    assert get(application, "/metrics", authorised).status == 200
    for path in ("/v2/health/live", "/v2/health/ready"):
        assert get(application, path).status == 200


# --- the queue, and time


def unfinished(rest: asyncio.Event) -> AsyncIterator[bytes]:
    """A body whose second half comes with the event."""

    async def parts() -> AsyncIterator[bytes]:
        yield tensor()[:20]
        await rest.wait()
        yield tensor()[20:]

    return parts()


def test_a_full_queue_is_429_before_the_body_is_read_and_loses_nothing(cohort: Path) -> None:
    config = ServeConfig(max_ongoing_requests=2, max_queued_requests=3)
    application = application_of([str(cohort / "run"), f"second={cohort / 'other'}"], config)

    async def run() -> tuple[list[Reply], Reply, Reply, str]:
        rest, never = asyncio.Event(), asyncio.Event()
        admitted = [asyncio.create_task(send(application, "POST", INFER, unfinished(rest))) for _ in range(5)]
        await asyncio.sleep(0.1)
        refused = await send(application, "POST", INFER, unfinished(never))
        other = await send(application, "POST", "/v2/models/second/infer", tensor())
        metrics = (await send(application, "GET", "/metrics")).body.decode()
        rest.set()
        return await asyncio.gather(*admitted), refused, other, metrics

    answers, refused, other, metrics = asyncio.run(run())
    assert [answer.status for answer in answers] == [200] * 5
    assert len({answer.body for answer in answers}) == 1
    assert (refused.status, refused.headers["retry-after"]) == (429, "1")
    assert refused.error.startswith("model run: expected fewer than 5 requests in work and waiting, got one more")
    assert other.status == 200
    assert 'milcore_queue_length{model="run"} 5.0' in metrics
    text = get(application, "/metrics").body.decode()
    for line in (
        'milcore_queue_length{model="run"} 0.0',
        'milcore_requests_total{model="run",status="200"} 5.0',
        'milcore_requests_total{model="run",status="429"} 1.0',
        'milcore_bags_total{model="run"} 5.0',
        'milcore_instances_total{model="run"} 10.0',
        'milcore_request_seconds_count{model="run"} 5.0',
        'milcore_bags_total{model="second"} 1.0',
    ):
        assert line in text


def test_a_request_that_does_not_come_whole_is_408_and_gives_its_place_back(cohort: Path) -> None:
    config = ServeConfig(timeout_s=0.3, max_ongoing_requests=1, max_queued_requests=0)
    application = application_of([str(cohort / "run")], config)
    reply = post(application, INFER, unfinished(asyncio.Event()))
    assert (reply.status, reply.error) == (408, "body: expected all of it within 0.3 s, got a part of it")
    assert 'milcore_queue_length{model="run"} 0.0' in get(application, "/metrics").body.decode()


def test_a_replica_that_does_not_answer_is_504(cohort: Path) -> None:
    (served,) = served_models([str(cohort / "run")])

    async def stuck(_: np.ndarray, __: np.ndarray | None, ___: int) -> str:
        await asyncio.Event().wait()
        return "never"

    async def ready() -> dict[str, bool]:
        return {"run": False}

    application = make_application(Models({"run": served}, {"run": stuck}, ready), ServeConfig(timeout_s=0.3), None)
    reply = post(application, INFER, tensor())
    assert (reply.status, reply.error) == (504, "no answer within 0.3 s; send it again later")
    assert get(application, "/v2/health/ready").status == get(application, "/v2/models/run/ready").status == 503
    assert get(application, "/v2/health/live").status == 200


# --- which runs can be served


def names_of(models: list[ServedModel]) -> list[str]:
    return [model.name for model in models]


def test_names_of_models(cohort: Path) -> None:
    run = str(cohort / "run")
    assert names_of(served_models([run, f"a.b-1={run}"])) == ["run", "a.b-1"]
    with pytest.raises(InputError, match="RUN: expected another name for each run, got 'run' twice; allowed: NAME=URI"):
        served_models([run, f"run={cohort / 'other'}"])
    with pytest.raises(InputError, match="no run at"):
        served_models([str(cohort / "none")])
    with pytest.raises(InputError, match="RUN: expected a name for the paths of requests, got 'a b'"):
        served_models([str(cohort / "a b")])


def test_a_run_on_patches_is_refused(tmp_path: Path) -> None:
    store = write_store(str(tmp_path / "store"), 8)
    config = {"features": None, "encoder": "conv", "hidden": 4, "attention_hidden": 2, "epochs": 1}
    run = train(store, str(tmp_path / "run"), TRAIN.model_copy(update=config))
    with pytest.raises(InputError, match=r"expected a run on features, got one on patches \(encoder conv\); allowed"):
        served_models([run])
