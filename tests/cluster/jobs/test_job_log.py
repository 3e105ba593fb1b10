"""The step's log has a line for each event; what Ray prints is kept beside, without secrets."""

import re
import resource
import tracemalloc
from pathlib import Path

import pytest

from milcore.cluster.jobs.job_log import JobLog, log_uri, logged_attempts
from milcore.cluster.jobs.rayjob_spec import JobRequest, job_key
from milcore.errors import ClusterError
from milcore.runtime import storage
from milcore.runtime.progress import IN_JOB, log_line
from tests.cluster.jobs.kuberay import pod
from tests.cluster.jobs.test_rayjob import DONE, HEAD_LOST, RUNNING, MakeKubernetes, kubernetes, status

__all__ = ["kubernetes"]  # a fixture

# as the submitter of KubeRay prints them: `ray job submit`, `ray job logs`, and what Ray prints of a head that is gone
BANNER = """\
2026-08-01 10:00:00,000\tINFO cli.py:41 -- \x1b[37mJob submission server address\x1b[39m: \x1b[1mhttp://x-head-svc:8265\x1b[22m
2026-08-01 10:00:01,000\tSUCC cli.py:65 -- \x1b[32m-------------------------------------\x1b[39m
2026-08-01 10:00:01,000\tSUCC cli.py:66 -- \x1b[32mJob 'x-abcde' submitted successfully\x1b[39m
2026-08-01 10:00:01,000\tSUCC cli.py:67 -- \x1b[32m-------------------------------------\x1b[39m
2026-08-01 10:00:01,000\tINFO cli.py:291 -- \x1b[36mNext steps\x1b[39m
2026-08-01 10:00:01,000\tINFO cli.py:292 -- Query the logs of the job:
2026-08-01 10:00:01,000\tINFO cli.py:294 -- \x1b[1mray job logs x-abcde\x1b[22m
2026-08-01 10:00:01,000\tINFO cli.py:296 -- Query the status of the job:
2026-08-01 10:00:01,000\tINFO cli.py:298 -- \x1b[1mray job status x-abcde\x1b[22m
2026-08-01 10:00:01,000\tINFO cli.py:300 -- Request the job to be stopped:
2026-08-01 10:00:01,000\tINFO cli.py:302 -- \x1b[1mray job stop x-abcde\x1b[22m""".splitlines()
TRACEBACK = ["Traceback (most recent call last):", *(f'  File "/x/aiohttp/{k}.py", line {k}' for k in range(38)),
             "aiohttp.client_exceptions.ClientConnectorError: key AKIAIOSFODNN7EXAMPLE refused"]  # fmt: skip
LOST_WORKER = ["\x1b[33m(raylet)\x1b[0m The node with node id: 1 has been marked dead", *["  (1) raylet crashes"] * 5]
WORK = ["milcore: epoch 1/2", "\x1b[36m(RayTrainWorker pid=12, ip=10.0.0.1)\x1b[0m milcore: epoch 2/2"]


def request(folder: Path) -> JobRequest:
    return JobRequest("run-1", "train", ("train", str(folder)), 2, use_gpu=False, folder_uri=str(folder))


def test_the_step_s_log_has_milcore_s_lines_and_the_kept_one_has_all(
    kubernetes: MakeKubernetes, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    cluster, step = kubernetes([RUNNING, HEAD_LOST], [RUNNING, DONE]), request(tmp_path)
    names = [f"{job_key(step)}-r{k}" for k in range(2)]
    cluster.fake.logs = {names[0]: [*BANNER, WORK[0], *LOST_WORKER, *TRACEBACK], names[1]: [*BANNER, WORK[1]]}
    cluster.launch(request=step)
    shown, kept = capfd.readouterr().err.splitlines(), [Path(log_uri(str(tmp_path), "train", k)) for k in (0, 1)]
    assert [path.read_text().count("\n") for path in kept] == [11 + 1 + 6 + 40, 11 + 1]
    assert shown == [
        f"RayJob {names[0]} in namespace mil: python -m milcore.cluster train {tmp_path} --scale-up-seconds 22200",
        "epoch 1/2",
        f"RayJob {names[0]}: Running, job RUNNING",
        f"RayJob {names[0]}: Failed, job RUNNING",
        f"all 58 lines of the job's log: {kept[0]}",
        f"RayJob {names[0]} failed: AppFailed: {HEAD_LOST['message']}; trying again in 30 s (2 left)",
        f"RayJob {names[1]} in namespace mil: python -m milcore.cluster train {tmp_path} --scale-up-seconds 22200",
        "epoch 2/2",
        f"RayJob {names[1]}: Running, job RUNNING",
        f"RayJob {names[1]}: Complete, job SUCCEEDED",
        f"all 12 lines of the job's log: {kept[1]}",
    ]
    text = "".join(path.read_text() for path in kept)
    assert "\x1b" not in text
    assert "AKIA" not in text
    assert logged_attempts(str(tmp_path), "train") == [0, 1]


def test_a_job_whose_log_is_there_has_its_number_taken(kubernetes: MakeKubernetes, tmp_path: Path) -> None:
    cluster, step = kubernetes([DONE]), request(tmp_path)
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "train-r3.log").write_text("of an earlier run\n")
    cluster.launch(request=step)
    assert cluster.fake.created == [f"{job_key(step)}-r4"]


def test_a_job_whose_log_cannot_be_kept_is_left(
    kubernetes: MakeKubernetes, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    cluster, step = kubernetes([RUNNING, DONE]), request(tmp_path)
    (tmp_path / "logs").write_text("a file where the folder is to be")
    name = f"{job_key(step)}-r0"
    cluster.fake.logs = {name: WORK}
    cluster.launch(request=step)
    assert list(cluster.fake.jobs) == [name]
    assert f"kubectl delete rayjob {name} -n mil" in capfd.readouterr().err


def test_a_second_submitter_is_a_line_about_the_head(
    kubernetes: MakeKubernetes, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    cluster, step = kubernetes([RUNNING] * 3 + [DONE]), request(tmp_path)
    name = f"{job_key(step)}-r0"
    cluster.fake.logs = {name: WORK[:1]}
    again = pod(f"{name}-zzzzz", {"job-name": name}, phase="Running", startTime="2026-01-01T00:01:00Z")
    cluster.fake.logs[f"{name}-zzzzz"] = []
    cluster.launch(request=step, pause=lambda _: cluster.fake.pods.append(again) if not cluster.fake.pods else None)
    line = f"RayJob {name}: its head or submitter was lost; {name}-zzzzz takes over"
    assert capfd.readouterr().err.splitlines().count(line) == 1


def test_a_driver_s_failure_is_one_line(kubernetes: MakeKubernetes) -> None:
    log = "\n".join([*BANNER, *TRACEBACK[:-1], "KeyError: 'x'"])
    message = (
        f"Job entrypoint command failed with exit code 1, last available logs (truncated to 20,000 chars):\n{log}\n"
    )
    cluster = kubernetes([RUNNING, status("Failed", "FAILED", "AppFailed", message)])
    with pytest.raises(ClusterError) as failure:
        cluster.launch()
    assert re.search(r"failed: AppFailed: Job entrypoint .* exit code 1: KeyError: 'x'$", str(failure.value))
    assert "\n" not in str(failure.value)


def test_lines_of_a_job_s_processes_are_marked_and_shown_without_the_mark(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(IN_JOB, "1")
    log_line("epoch 1/9")
    log_line("milcore: no run")
    lines = capfd.readouterr().err.splitlines()
    assert lines == ["milcore: epoch 1/9", "milcore: no run"]
    monkeypatch.delenv(IN_JOB)
    with JobLog(None) as log:
        for line in [*lines, *BANNER]:
            log.add(line)
    assert capfd.readouterr().err.splitlines() == ["epoch 1/9", "no run"]


@pytest.mark.parametrize("kind", ["local", "s3"])
def test_a_log_of_any_length_takes_little_memory(kind: str, s3: str, tmp_path: Path) -> None:
    """A thousand lines of 20 kB are more than one part of an upload."""
    uri = f"{s3}/logs/train-r0.log" if kind == "s3" else str(tmp_path / "logs/train-r0.log")
    lines = 1000
    tracemalloc.start()
    with JobLog(uri) as log:
        for number in range(lines):
            log.add(f"{number:020000d}")
        kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 2_000_000
    assert storage.read_bytes(uri) == b"".join(b"%020000d\n" % number for number in range(lines))


def test_a_full_disk_costs_the_log_and_not_the_step(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A limit of file sizes refuses as a full disk does: lines, and once more what closing the file writes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with JobLog(str(tmp_path / "logs/train-r0.log")) as log:
            for number in range(30):
                log.add(f"{number:010000d}")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (log.is_kept, log.last_line) == (False, f"{29:010000d}")
    assert capfd.readouterr().err.count("the job's log is not kept: ") == 1
    assert not (tmp_path / "logs").exists()
