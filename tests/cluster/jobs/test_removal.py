"""What is left of a step's RayJobs: nothing once its work has succeeded or its last attempt has failed."""

import signal
from pathlib import Path
from typing import Any

import pytest

from milcore.cluster.jobs.job_log import log_uri
from milcore.cluster.jobs.profile import ClusterProfile
from milcore.cluster.jobs.rayjob import delete_run_jobs, next_attempt
from milcore.cluster.jobs.rayjob_spec import DIGEST_ANNOTATION, job_key
from milcore.errors import ClusterError, InputError
from milcore.runtime.command import Termination
from tests.cluster.jobs.kuberay import Fault, pod
from tests.cluster.jobs.test_rayjob import (
    BAD_INPUT,
    CLUSTER_LOST,
    DONE,
    DRIVER_FAILED,
    ENVIRONMENT,
    REQUEST,
    RUNNING,
    KilledError,
    MakeKubernetes,
    expected_name,
    killed,
    kubernetes,
)

__all__ = ["kubernetes"]  # a fixture
SHELL = ENVIRONMENT._replace(run_id=None, owner=None)


def test_a_job_that_has_succeeded_is_removed(kubernetes: MakeKubernetes) -> None:
    cluster = kubernetes([RUNNING, DONE])
    cluster.launch()
    assert cluster.fake.jobs == {}


def test_attempts_in_between_stay_until_the_step_ends(kubernetes: MakeKubernetes) -> None:
    cluster, there = kubernetes([RUNNING, CLUSTER_LOST], [RUNNING, CLUSTER_LOST], [RUNNING, DONE]), list[list[str]]()
    cluster.launch(pause=lambda _: there.append(list(cluster.fake.jobs)))
    assert there[-1] == [expected_name(k) for k in range(3)]
    assert cluster.fake.jobs == {}


@pytest.mark.parametrize(
    ("lives", "error"),
    [
        ([[RUNNING, DRIVER_FAILED]], ClusterError),
        ([[RUNNING, BAD_INPUT]], InputError),
        ([[RUNNING, CLUSTER_LOST]] * 3, ClusterError),
    ],
    ids=["driver", "input", "three-clusters"],
)
def test_the_last_attempt_that_fails_takes_all_with_it(
    kubernetes: MakeKubernetes, lives: list[list[dict[str, str] | None]], error: type[Exception]
) -> None:
    cluster = kubernetes(*lives)
    with pytest.raises(error):
        cluster.launch()
    assert len(cluster.fake.created) == len(lives)
    assert cluster.fake.jobs == {}


def test_a_step_that_is_stopped_frees_its_cluster_before_it_keeps_the_log(
    kubernetes: MakeKubernetes, tmp_path: Path
) -> None:
    """And attempts that failed before, which no later command would remove."""
    cluster, step = kubernetes([RUNNING, CLUSTER_LOST], [RUNNING]), REQUEST._replace(folder_uri=str(tmp_path))
    names = [f"{job_key(step)}-r{k}" for k in range(2)]
    cluster.fake.logs = {name: ["milcore: epoch 1/2"] for name in names}
    log, remove, there = Path(log_uri(str(tmp_path), "train", 1)), cluster.fake.remove, list[bool]()

    def pause(_: float) -> None:
        if len(cluster.fake.created) == 2:
            raise Termination(signal.SIGTERM)

    def watched(name: str) -> tuple[int, dict[str, Any]]:
        there.append(log.exists())
        return remove(name)

    cluster.fake.remove = watched  # type: ignore[method-assign]
    with pytest.raises(Termination):
        cluster.launch(request=step, pause=pause)
    assert cluster.fake.jobs == {}
    assert there[0] is False
    assert log.exists()


def test_a_job_that_is_kept_stays_and_the_command_that_deletes_it_is_told(
    kubernetes: MakeKubernetes, capfd: pytest.CaptureFixture[str]
) -> None:
    cluster, names = kubernetes([RUNNING, CLUSTER_LOST], [RUNNING, DONE]), [expected_name(0), expected_name(1)]
    cluster.launch(profile=ClusterProfile(kept_s=600))
    assert list(cluster.fake.jobs) == names
    line = f"kept for 600 s: kubectl delete rayjob {' '.join(names)} -n mil"
    assert line in capfd.readouterr().err.splitlines()
    assert delete_run_jobs(cluster.jobs(), "run-1") == []
    assert list(cluster.fake.jobs) == names


def test_an_api_that_stays_away_at_the_end_costs_a_line_and_not_the_work(
    kubernetes: MakeKubernetes, capfd: pytest.CaptureFixture[str]
) -> None:
    cluster = kubernetes([RUNNING, DONE])
    cluster.fake.faults["delete", "rayjobs"] = [Fault(500)] * 3
    cluster.launch()
    assert "the step's RayJobs are not removed: the Kubernetes API stays away (delete" in capfd.readouterr().err


def test_a_name_is_not_used_again_while_pods_of_an_earlier_job_are_there(kubernetes: MakeKubernetes) -> None:
    """A job of that name would take them, and what they have logged, for its own."""
    cluster = kubernetes([DONE])
    cluster.fake.orphans = [pod(f"{expected_name(4)}-abcde", {"job-name": expected_name(4)}, phase="Succeeded")]
    cluster.launch()
    assert cluster.fake.created == [expected_name(5)]


def test_a_name_that_another_job_has_is_passed_over(kubernetes: MakeKubernetes) -> None:
    """It has not our labels, so that no list shows it, or other settings."""
    cluster, name = kubernetes([DONE]), expected_name(0)
    cluster.fake.jobs[name] = {"metadata": {"name": name, "labels": {}, "annotations": {DIGEST_ANNOTATION: "other"}}}
    cluster.launch()
    assert cluster.fake.created == [expected_name(1)]
    assert list(cluster.fake.jobs) == [name]


def test_a_command_does_not_take_an_earlier_one_s_job_for_its_own(kubernetes: MakeKubernetes) -> None:
    """A step of a pipeline that was killed at its end does."""
    kept = ClusterProfile(kept_s=600)
    cluster = kubernetes([DONE], [DONE])
    for _ in range(2):
        cluster.launch(environment=SHELL, profile=kept)
    assert len(cluster.fake.created) == 2
    step = kubernetes([RUNNING, DONE])
    with pytest.raises(KilledError):
        step.launch(pause=killed)
    step.fake.look(expected_name(0))
    step.launch()
    assert step.fake.created == [expected_name(0)]


def test_attempts_are_counted_by_their_names() -> None:
    assert next_attempt("mil-a", []) == 0
    assert next_attempt("mil-a", ["mil-a-r0", "mil-a-r10-abcde-head-x", "mil-a-rx", "mil-ab-r20", "mil-a-r3"]) == 11
