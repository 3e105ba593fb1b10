"""The same steps on a cluster that stands already: as a job through its dashboard, and joined directly."""

import contextlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from ray.job_submission import JobSubmissionClient

from milcore import api
from milcore.cluster.jobs import submission
from milcore.cluster.jobs.submission import run_job
from milcore.cluster.launch import train_with
from milcore.config import AnnotationConfig, IngestConfig, LaunchConfig, SplitConfig, TrainConfig
from milcore.errors import ClusterError, InputError
from milcore.runtime import storage
from milcore.runtime.lease import lease
from milcore.training.run import prepare_run
from milcore.training.run_folder import Run
from tests.cluster.workers.test_ingest import planned
from tests.cohorts import write_features, write_store
from tests.conftest import free_ports
from tests.ray_node import Head

TRAIN = TrainConfig(features="mean_rgb", hidden=8, attention_hidden=4, epochs=3, batch_size=4)


def prepared(folder_uri: str) -> str:
    store, run = storage.join(folder_uri, "store"), storage.join(folder_uri, "run")
    write_features(write_store(store))
    prepare_run(store, run, TRAIN, SplitConfig())
    return run


def test_a_job_trains_on_s3_and_its_log_is_shown(
    standing_ray: Head, s3: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = prepared(storage.join(s3, tmp_path.name))
    train_with(run, LaunchConfig(ray_address=standing_ray.dashboard, workers=2))
    assert Run(run).spec().train == TRAIN
    shown = capfd.readouterr().err
    assert "python -m milcore.cluster train" in shown
    assert [shown.count(f"epoch {k}/3: ") for k in (1, 3)] == [1, 1]
    assert [word for word in ("pid=", "\x1b", "milcore: ") if word in shown] == []
    assert re.fullmatch(rf"all \d+ lines of the job's log: {run}/logs/train-r0.log", shown.splitlines()[-1])
    kept = storage.read_bytes(f"{run}/logs/train-r0.log").decode()
    assert "milcore: epoch 3/3" in kept
    assert "\x1b" not in kept
    (job,) = [job for job in JobSubmissionClient(standing_ray.dashboard).list_jobs() if run in job.entrypoint]
    assert "AWS_ENDPOINT_URL" in job.runtime_env["env_vars"]
    assert os.environ["AWS_SECRET_ACCESS_KEY"] not in str(job), "what travels with a job is shown by the dashboard"


def test_one_job_ingests_the_whole_cohort_of_a_pipeline(
    standing_ray: Head, s3: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """However many partitions were asked for; a second job finds all done."""
    folder = storage.join(s3, tmp_path.name)
    launch = LaunchConfig(ray_address=standing_ray.dashboard, workers=2)
    store = planned(folder, tmp_path)
    manifest, annotations = storage.join(folder, "m.csv"), AnnotationConfig()
    plans = [api.plan_pipeline(manifest, store, None, 3, annotations=annotations, launch=launch) for _ in range(2)]
    assert [plan.partitions for plan in plans] == [["0/1"]] * 2
    assert plans[0].state != plans[1].state, "a step that launches Ray is not reused"
    counts = api.ingest_partition(store, "0/1", IngestConfig(patch_size=64), launch)
    assert counts == {"ok": 3, "quarantined": 1, "patches": 48, "skipped": 0}
    cohort = api.gather_ingestion(store, [counts])
    assert (cohort["ok"], list(cohort["quarantined"]), cohort["patches"]) == (["s0", "s1", "s2"], ["broken"], 48)
    assert f"python -m milcore.cluster ingest {store} --mpp 0.5 --patch-size 64" in capfd.readouterr().err
    assert api.ingest_partition(store, "0/1", IngestConfig(patch_size=64), launch) == counts
    assert storage.names(storage.join(store, "heartbeats")) == []


def test_a_job_whose_input_cannot_be_used_says_so_in_one_line(standing_ray: Head, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^no run at .* run milcore train first$"):
        run_job(["train", str(tmp_path)], LaunchConfig(ray_address=standing_ray.dashboard, workers=2))


def test_a_job_that_fails_is_an_error_with_its_last_line(standing_ray: Head, tmp_path: Path) -> None:
    """Here because another process, this one, trains the same run."""
    run = prepared(str(tmp_path))
    with lease(run, "run"), pytest.raises(ClusterError, match=r"ended as FAILED: the run at .* by another process"):
        run_job(["train", run, "--workers", "2"], LaunchConfig(ray_address=f"{standing_ray.dashboard}/", workers=2))


def test_nobody_at_the_dashboard_s_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submission, "DASHBOARD_START_S", 0.0)
    address = f"http://127.0.0.1:{free_ports(1)[0]}"
    with pytest.raises(ClusterError, match=f"no Ray dashboard answers at {address}"):
        run_job(["train", "run"], LaunchConfig(ray_address=address))


class Dashboard(BaseHTTPRequestHandler):
    """Answers of Ray's dashboard to one whose jobs succeed at once: dashboard/modules/job/job_head.py."""

    status, message, logs = "SUCCEEDED", "", "milcore: done\n"

    def _handle(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        job = {
            "type": "SUBMISSION", "status": self.status, "message": self.message, "entrypoint": "python",
            "submission_id": "job",
        }  # fmt: skip
        answers: list[tuple[str, object]] = [
            ("/api/version", {"version": "4", "ray_version": "2", "ray_commit": "x", "session_name": "s"}),
            ("/logs", {"logs": self.logs}),
            ("/api/jobs/", {"job_id": "job", "submission_id": "job"} if self.command == "POST" else []),
        ]
        answer = next((body for end, body in answers if self.path.endswith(end)), job)
        data = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = _handle  # noqa: N815 - the base class's names

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        """Keep quiet."""


@contextlib.contextmanager
def dashboard(kind: type[BaseHTTPRequestHandler]) -> Iterator[LaunchConfig]:
    """A dashboard, by its address."""
    with ThreadingHTTPServer(("127.0.0.1", 0), kind) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield LaunchConfig(ray_address=f"http://127.0.0.1:{server.server_address[1]}", workers=1)
        finally:
            server.shutdown()


def test_a_dashboard_that_starts_late_is_waited_for(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    address = ("127.0.0.1", free_ports(1)[0])
    with ThreadingHTTPServer(address, Dashboard, bind_and_activate=False) as server:

        def start() -> None:
            server.server_bind()
            server.server_activate()
            server.serve_forever(0.01)

        late = threading.Timer(1.5, start)
        late.start()
        run_job(["encode", str(tmp_path)], LaunchConfig(ray_address=f"http://127.0.0.1:{address[1]}", workers=1))
        server.shutdown()
        late.join()
    lines = capfd.readouterr().err
    assert lines.count(f"no Ray dashboard answers at http://127.0.0.1:{address[1]}: ") == 1
    assert "; trying again for 60 s" in lines


class FailedJobs(Dashboard):
    """Its jobs end without a line of their own."""

    status, message, logs = "FAILED", "Job supervisor died.\nAWS_SECRET_ACCESS_KEY=hunter2", ""


def test_a_job_without_a_line_fails_with_ray_s_message_and_no_secret(tmp_path: Path) -> None:
    ended = pytest.raises(ClusterError, match=r"ended as FAILED: Job supervisor died\.")
    with dashboard(FailedJobs) as launch, ended as failure:
        run_job(["encode", str(tmp_path)], launch)
    assert "hunter2" not in str(failure.value)
    assert "\n" not in str(failure.value)


@pytest.mark.parametrize("message", ["", " \n", None])
def test_a_job_that_tells_no_reason_has_failed_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, message: str | None
) -> None:
    monkeypatch.setattr(FailedJobs, "message", message)
    with dashboard(FailedJobs) as launch, pytest.raises(ClusterError, match=r"ended as FAILED: no reason given$"):
        run_job(["encode", str(tmp_path)], launch)


class Refusal(BaseHTTPRequestHandler):
    """A dashboard that asks for a token."""

    def do_GET(self) -> None:
        self.send_error(401, "Unauthorized")

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        """Keep quiet."""


def test_a_dashboard_that_refuses_the_token_is_one_line_at_once(capfd: pytest.CaptureFixture[str]) -> None:
    with dashboard(Refusal) as launch:
        line = f"^the Ray dashboard at {launch.ray_address} refuses this process; set RAY_AUTH"
        with pytest.raises(InputError, match=line):
            run_job(["encode", "store"], launch)
    assert "trying again" not in capfd.readouterr().err


def test_no_log_of_a_folder_is_written_over(tmp_path: Path) -> None:
    """One of other settings, or of a cluster that is gone, whose jobs are counted from 0 again."""
    with dashboard(Dashboard) as launch:
        for encoder in ("a", "b"):
            run_job(["encode", str(tmp_path), "--encoder", encoder], launch)
    assert sorted(path.name for path in tmp_path.glob("logs/*")) == ["encode-r0.log", "encode-r1.log"]


def test_a_process_joins_the_cluster_by_its_address(standing_ray: Head, s3: str, tmp_path: Path) -> None:
    run = prepared(storage.join(s3, tmp_path.name))
    command = [sys.executable, "-m", "milcore.cluster", "train", run, "--workers", "2"]
    ended = subprocess.run([*command, "--ray-address", standing_ray.gcs], check=False, env=dict(os.environ))
    assert ended.returncode == 0
    assert Run(run).spec().train == TRAIN
