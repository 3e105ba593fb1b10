"""A killed replica and an overload lose no answer of a service, and Triton's client speaks to it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from milcore.evaluation.evaluate import evaluate
from tests.cli.test_signals import MILCORE, Command
from tests.cohorts import write_features, write_store
from tests.conftest import free_ports
from tests.evaluation.test_predict_store import TRAIN, train
from tests.serving.bodies import HEADER_LENGTH, binary_outputs, binary_request
from tests.serving.test_service import exchange

ROOT = Path(__file__).resolve().parents[2]
# made by `make test-faults`
TRITON = ROOT / ".venv" / "triton" / "bin" / "python"
READY = TRITON.parents[1] / "ready"
TRIES, CLIENTS, REQUESTS = 4, 8, 160
ONGOING, QUEUED = 2, 4
INFER = "/v2/models/run/infer"


class Service(Command):
    """A service of a run, in a process of its own."""

    def __init__(self, run: str, *options: str, folder: Path) -> None:
        (self.port,) = free_ports(1)
        super().__init__(MILCORE, "serve", run, "--port", str(self.port), *options, folder=folder)
        self.wait_until(lambda: "serving run at" in self.log.read_text())

    def replicas(self) -> list[int]:
        """Ids of the processes that score."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    is_ours = self.mark.encode() in (entry / "environ").read_bytes()
                    title = (entry / "cmdline").read_text()
                except OSError:
                    continue
                if is_ours and title.startswith("ray::ServeReplica:milcore:model-run"):
                    found.append(int(entry.name))
        return found

    def end(self) -> None:
        self.send(signal.SIGTERM)
        assert self.process.wait(60) == 0, self.log.read_text()[-3000:]
        self.check_none_is_left()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("run")
    store = write_store(str(folder / "store"))
    write_features(store)
    run = train(store, str(folder / "run"), TRAIN.model_copy(update={"activation_mb": None}))
    evaluate(run, baselines=False, attention_formats=())
    return run


@pytest.fixture(scope="module")
def service(run: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Two replicas; a bag passes alone."""
    limits = ("--max-ongoing-requests", str(ONGOING), "--max-queued-requests", str(QUEUED))
    options = ("--replicas", "2", "--instances-per-batch", "1", *limits)
    service = Service(run, *options, folder=tmp_path_factory.mktemp("service"))
    yield service
    service.end()


def bag(k: int) -> np.ndarray:
    """A bag of its own, large enough that requests meet."""
    return np.random.default_rng(k).random((20_000, 3), np.float32)


def ask(service: Service, k: int) -> tuple[int, bytes, str]:
    body, headers = binary_request(features=bag(k))
    status, answered, data = exchange(service.port, "POST", INFER, body, headers)
    return status, data, answered.get(HEADER_LENGTH.lower(), "")


def probability(answer: tuple[int, bytes, str]) -> float:
    status, data, length = answer
    assert status == 200, data
    return float(binary_outputs(data, length)["probability"][0])


def test_a_replica_that_is_killed_loses_no_answer_of_clients_that_ask_again(service: Service) -> None:
    known = {k: probability(ask(service, k)) for k in range(CLIENTS)}
    victim = service.replicas()[0]
    statuses: Counter[int] = Counter()

    def persist(k: int) -> float:
        for attempt in range(TRIES):
            answer = ask(service, k % CLIENTS)
            statuses[answer[0]] += 1
            if answer[0] == 200:
                break
            assert answer[0] in {429, 503}
            assert list(json.loads(answer[1])) == ["error"]
            time.sleep(2**attempt)
        return probability(answer)

    with ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(persist, k) for k in range(REQUESTS)]
        while sum(answer.done() for answer in answers) < REQUESTS // 4:
            time.sleep(0.01)
        os.kill(victim, signal.SIGKILL)
        results = [answer.result() for answer in answers]
    assert results == [known[k % CLIENTS] for k in range(REQUESTS)]
    assert statuses[200] == REQUESTS
    service.wait_until(lambda: len(service.replicas()) == 2 and victim not in service.replicas())


def test_overload_is_refused_and_what_is_accepted_is_right(service: Service) -> None:
    places = 2 * ONGOING + QUEUED
    known = {k: probability(ask(service, k)) for k in range(CLIENTS)}
    statuses: Counter[int] = Counter()

    def press(k: int) -> float:
        while True:
            answer = ask(service, k % CLIENTS)
            statuses[answer[0]] += 1
            if answer[0] == 200:
                return probability(answer)
            assert answer[0] == 429, answer[1]
            assert b"expected fewer than 8 requests in work and waiting" in answer[1]

    lengths = []
    with ThreadPoolExecutor(4 * places) as pool:
        answers = [pool.submit(press, k) for k in range(REQUESTS)]
        while not all(answer.done() for answer in answers):
            text = exchange(service.port, "GET", "/metrics")[2].decode()
            lengths += [
                float(line.split()[1]) for line in text.splitlines() if line.startswith("milcore_queue_length{")
            ]
        assert [answer.result() for answer in answers] == [known[k % CLIENTS] for k in range(REQUESTS)]
    assert max(lengths) <= places
    assert statuses[429] > 0


CLIENT = """
import sys, numpy as np, tritonclient.http as triton
client = triton.InferenceServerClient(sys.argv[1])
assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("run")
metadata = client.get_model_metadata("run")
assert metadata["inputs"][0]["name"] == "features", metadata
version = metadata["versions"][0]
features = np.load(sys.argv[2])
values = []
for array, kind in ((features, "FP32"), (features.astype(np.float16), "FP16")):
    for binary in (True, False) if kind == "FP32" else (True,):
        tensor = triton.InferInput("features", array.shape, kind)
        tensor.set_data_from_numpy(array, binary_data=binary)
        wanted = [triton.InferRequestedOutput(name, binary_data=binary) for name in ("probability", "called")]
        for outputs in (None, wanted):
            answer = client.infer("run", [tensor], model_version=version, outputs=outputs, request_id="7")
            assert answer.get_response()["id"] == "7"
            assert answer.as_numpy("called").shape == (1,)
            values.append(float(answer.as_numpy("probability")[0]))
            assert (answer.as_numpy("attention_weight") is None) == (outputs is not None)
try:
    client.infer("run", [triton.InferInput("other", [1, 3], "FP32").set_data_from_numpy(np.zeros((1, 3), np.float32))])
except triton.InferenceServerException as error:
    print(error)
print(*values)
"""


@pytest.mark.skipif(not READY.exists(), reason="no environment with tritonclient; `make triton-client` makes it")
def test_triton_s_client_gets_the_numbers_and_the_lines(service: Service, tmp_path: Path) -> None:
    features = np.float32([[0.25, 0.5, 0.75], [0.5, 0.25, 0.125]])  # the same in FP16
    np.save(tmp_path / "features.npy", features)
    command = [str(TRITON), "-c", CLIENT, f"127.0.0.1:{service.port}", str(tmp_path / "features.npy")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    line, values = done.stdout.splitlines()
    assert "inputs: expected features, and coords or none, got other" in line
    body, headers = binary_request(features=features)
    _, answered, data = exchange(service.port, "POST", INFER, body, headers)
    known = binary_outputs(data, answered[HEADER_LENGTH.lower()])["probability"]
    assert [float(value) for value in values.split()] == 6 * known
    assert sys.executable != str(TRITON)
