"""The cases that need a cluster: the changes they ask for, rows that fail, and the clean-up, whatever ends the run."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from milcore.cli.main import app
from milcore.errors import InputError
from milcore.runtime.command import Termination
from tests.conformance.__main__ import Conformance, Interruption, main, prepare
from tests.conformance.case import Case, Place
from tests.conformance.conftest import KEYS, MakeSurroundings, Surroundings
from tests.conformance.objects import NAME
from tests.conformance.report import Row
from tests.conformance.runner import run_cases
from tests.conformance.table import ON_CLUSTER, chosen_cases

FREED = "gracePeriodSeconds=0"


def step(name: str, *between: str, place: str = "mil") -> list[str]:
    """The changes of a case with one step."""
    pods = f"namespaces/{place}/pods"
    return [f"POST {pods}/{name}", *between, f"DELETE {pods}/{name} {FREED}"]


def kill(name: str, role: str) -> str:
    return f"DELETE namespaces/mil/pods/lost-{name}-r0-{role} {FREED}"


def doctor(place: str) -> list[str]:
    job = f"batch/v1/namespaces/{place}/jobs/milcore-doctor"
    return [f"POST {job}", f"DELETE {job}"]


def created(place: str, *objects: str) -> list[str]:
    return [f"POST namespaces/{place}", *(f"POST namespaces/{place}/{each}" for each in objects)]


REFUSALS, OTHER = "mil-refusals", "mil-other"
SECRETS = ("secrets/milcore-s3", "secrets/milcore-ray")
QUOTA = f"namespaces/{REFUSALS}/resourcequotas/conformance"
CHANGES = {
    "overlay": [],
    "other overlays": [],
    "PodSecurity restricted": [
        f"POST namespaces/mil/pods/conformance-{role} dryRun=All"
        for role in ("privileged", "head", "worker", "submitter")
    ],
    "doctor": [doctor("mil")[0], *doctor("mil"), doctor("mil")[1]],
    "cohort": step("cohort"),
    "standing cluster": [],
    "port open to steps": step("reach-step"),
    "other ports": [*step("reach-6379"), *step("reach-10001")],
    "pod without the label": step("reach-unlabelled"),
    "pod of another namespace": [
        *created(OTHER, *SECRETS, "configmaps/milcore-storage", "serviceaccounts/milcore-step"),
        *step("reach-other", place=OTHER),
    ],
    "encode by http://": step("encode-http"),
    "train by http://": step("train-http"),
    "tune by http://": step("tune-http"),
    "encode by rayjob": step("encode-rayjob"),
    "train by rayjob": step("train-rayjob"),
    "tune by rayjob": step("tune-rayjob"),
    "log of a step": step("follow"),
    "head killed": step("lost-head", kill("head", "head")),
    "worker killed": step("lost-worker", kill("worker", "worker")),
    "submitter killed": step("lost-submitter", kill("submitter", "submitter")),
    "RayJob deleted underneath": step("lost-rayjob", "DELETE ray.io/v1/namespaces/mil/rayjobs/lost-rayjob-r0"),
    "launcher killed": step("lost-step", "POST namespaces/mil/pods/lost-step/exec", *step("lost-step-retry")),
    "step's pod killed": step("lost-pod", f"DELETE namespaces/mil/pods/lost-pod {FREED}"),
    "SIGTERM to the step": step("terminated", "DELETE namespaces/mil/pods/terminated gracePeriodSeconds=30"),
    "RayJob suspended": step("suspended", *["PATCH ray.io/v1/namespaces/mil/rayjobs/suspended-r0"] * 2),
    "quota too small for a worker": [
        *created(REFUSALS, *SECRETS, "serviceaccounts/milcore-step", "configmaps/conformance-profiles"),
        f"POST {QUOTA}", *step("small-quota", place=REFUSALS), f"DELETE {QUOTA}",
    ],
    "secret missing": step("no-secret", place=REFUSALS),
    "image missing": step("no-image", place=REFUSALS),
    "right missing": step("no-right", place=REFUSALS),
    "doctor, quota": [f"POST {QUOTA}", *doctor(REFUSALS), f"DELETE {QUOTA}"],
    "doctor, image missing": doctor(REFUSALS),
    "doctor, secret missing": [f"DELETE namespaces/{REFUSALS}/secrets/milcore-s3", *doctor(REFUSALS)],
}  # fmt: skip
KUBECTL = {
    "overlay": ["apply overlays/local in mil"] * 2,
    "other overlays": [
        f"apply {each} in mil --dry-run=server" for each in ("base", "overlays/gpu", "overlays/kubeflow-profile")
    ],
    "launcher killed": ["exec -n mil lost-step -- sh -c kill -KILL $(cat /tmp/step.pid)"],
    "quota too small for a worker": [f"apply overlays/local in {REFUSALS}"],
}
CLEAN_UP = [
    *step("remove-objects"),
    f"DELETE namespaces/{OTHER}", f"DELETE namespaces/{REFUSALS}", "DELETE namespaces/mil",
]  # fmt: skip


def whole_run(place: Surroundings, cases: tuple[Case, ...] = ON_CLUSTER) -> tuple[int, Conformance]:
    cluster, run = place.cluster(), Conformance(cases)

    def open_places(run: Conformance) -> dict[Place, Any]:
        prepare(cluster, run.clean_up)
        return {"cluster": cluster}

    return run.run(open_places), run


def test_each_case_asks_for_these_changes_and_no_others(surroundings: MakeSurroundings) -> None:
    place = surroundings()
    changes, cluster = place.stage.calls, place.cluster()
    cluster.create_namespace()
    cluster.prepare()
    start, of_kubectl = len(changes), 0
    for row in run_cases(ON_CLUSTER, {"cluster": cluster}):
        assert (row.case, row.state) == (row.case, "passed"), row.seen
        seen = [re.sub(r"milcore-doctor-\w+", "milcore-doctor", each) for each in changes[start:]]
        assert seen == CHANGES[row.case], row.case
        assert place.kubectl_calls[of_kubectl:] == KUBECTL.get(row.case, []), row.case
        start, of_kubectl = len(changes), len(place.kubectl_calls)


def test_a_whole_run_passes_says_how_long_each_step_took_and_leaves_nothing(surroundings: MakeSurroundings) -> None:
    place = surroundings()
    code, run = whole_run(place)
    assert code == 0
    assert [row.case for row in run.rows] == [*(case.name for case in ON_CLUSTER), "clean-up"]
    assert {row.state for row in run.rows} == {"passed"}
    assert place.stage.objects.by_path == {}
    assert place.stage.calls[-len(CLEAN_UP) :] == CLEAN_UP
    (head,) = [row for row in run.rows if row.case == "head killed"]
    assert [name for name, _ in head.steps] == ["training", "killed", "going on", "ended", "removed"]
    assert head.seconds >= sum(seconds for _, seconds in head.steps) > 0


def test_the_steps_commands_are_those_of_the_command_line(surroundings: MakeSurroundings) -> None:
    place = surroundings()
    whole_run(place)
    of_steps = [command[command.index("milcore") :] for command in place.stage.commands if "milcore" in command]
    (script,) = [command[2] for command in place.stage.commands if command[0] == "sh" and "synth" in command[2]]
    commands = [*of_steps, *(line.split() for line in script.splitlines() if line.startswith("milcore "))]
    assert {command[1] for command in commands} == {"synth", "ingest", "encode", "train", "tune"}
    for _, name, *rest in commands:
        shown = CliRunner().invoke(app, [name, "--help"]).output
        assert [word for word in rest if word.startswith("--") and f"  {word} " not in shown] == [], name
    programs = [command[2] for command in place.stage.commands if command[0] == "python"]
    assert len(programs) == 6  # reach of ports, removal of objects
    for program in programs:
        compile(program, "program", "exec")


def rows(run: Conformance) -> dict[str, Row]:
    return {row.case: row for row in run.rows}


@pytest.mark.parametrize(
    ("name", "case"),
    [
        ("lost-head", "head killed"), ("lost-step-retry", "launcher killed"), ("suspended", "RayJob suspended"),
        ("tune-http", "tune by http://"), ("reach-step", "port open to steps"),
    ],
)  # fmt: skip
def test_a_step_that_fails_is_a_row_that_fails(surroundings: MakeSurroundings, name: str, case: str) -> None:
    place = surroundings(codes={name: 1})
    code, run = whole_run(place)
    assert code == 1
    assert {row.case for row in run.rows if row.state == "failed"} == {case}
    assert "exit code 1: " in rows(run)[case].seen
    assert place.stage.objects.by_path == {}


def test_what_builds_on_a_case_that_failed_is_not_run(surroundings: MakeSurroundings) -> None:
    place = surroundings(codes={"cohort": 1})
    _, run = whole_run(place)
    seen = rows(run)
    assert seen["cohort"].state == "failed"
    assert seen["encode by rayjob"].seen == "not run: 'cohort' has not passed"
    assert seen["head killed"].seen == "not run: 'encode by rayjob' has not passed"
    assert seen["port open to steps"].state == "passed"
    assert seen["clean-up"].state == "passed"


def test_a_policy_that_is_not_enforced_is_a_row_that_fails(surroundings: MakeSurroundings) -> None:
    place = surroundings(open_network=True)
    _, run = whole_run(place)
    failures = {row.case: row.seen for row in run.rows if row.state == "failed"}
    assert failures == {
        "other ports": "port 6379 reached",
        "pod without the label": "port 8265 reached",
        "pod of another namespace": "port 8265 reached",
    }


def test_a_pod_that_reaches_nothing_shows_no_policy(surroundings: MakeSurroundings) -> None:
    place = surroundings(has_network=False)
    _, run = whole_run(place)
    failures = {row.case: row.seen for row in run.rows if row.state == "failed"}
    assert failures.keys() == {"other ports", "pod without the label", "pod of another namespace"}
    assert all(seen.endswith("this says nothing of a policy") for seen in failures.values())


def test_a_removal_that_fails_is_told_and_the_others_are_done(surroundings: MakeSurroundings) -> None:
    place = surroundings(codes={"remove-objects": 1})
    code, run = whole_run(place, ON_CLUSTER[:5])
    assert code == 1
    assert run.rows[-1].state == "failed"
    assert run.rows[-1].seen.startswith("objects: s3://bucket/conformance/mil may be left")
    assert place.stage.objects.by_path == {}


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_stopped_ends_with_the_table_and_cleans_up(
    surroundings: MakeSurroundings, tmp_path: Path, signum: int
) -> None:
    place, file = surroundings(stuck="cohort"), tmp_path / "rows.json"
    command = [sys.executable, "-m", "tests.conformance", "--uri", "s3://bucket/folder", "--json", str(file)]
    command += ["--only", "cohort", "--only", "head killed"]
    with subprocess.Popen(command, env={**os.environ, **KEYS}, stdout=subprocess.PIPE, text=True) as process:
        while not any(call.endswith("/pods/cohort") for call in place.stage.calls):
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signum)
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signum, output
    name = signal.Signals(signum).name
    seen = {row["case"]: row["seen"] for row in json.loads(file.read_text())["rows"]}
    assert seen["cohort"] == seen["head killed"] == f"not run: stopped by {name}"
    assert seen["clean-up"] == "all removed"
    assert seen["overlay"].endswith("unchanged the second time")
    assert "s between steps" in output
    assert place.stage.objects.by_path == {}
    assert [call.partition(f"namespaces/{NAME}")[0] for call in place.stage.calls[-3:]] == ["DELETE "] * 3
    assert KEYS["AWS_SECRET_ACCESS_KEY"] not in output + file.read_text()


def test_another_signal_lets_the_clean_up_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    interruption = Interruption()
    with pytest.raises(Termination):
        interruption(signal.SIGINT, None)
    interruption(signal.SIGINT, None)
    assert "cleaning up" in capsys.readouterr().out


def test_a_namespace_that_may_not_be_made_ends_the_run_with_the_reason(
    surroundings: MakeSurroundings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place = surroundings()
    place.stage.fake.answers["/api/v1/namespaces"] = (403, {"message": "namespaces is forbidden"})
    for key, value in KEYS.items():
        monkeypatch.setenv(key, value)
    assert main(["--uri", "s3://bucket/folder", "--only", "overlay", "--json", str(tmp_path / "rows.json")]) == 1
    assert "overlay: not run" not in capsys.readouterr().out.partition("conformance: API: 403")[0]
    seen = {row["case"]: row for row in json.loads((tmp_path / "rows.json").read_text())["rows"]}
    assert seen["overlay"]["state"] == "not run"
    assert "namespaces is forbidden" in seen["overlay"]["seen"]
    assert seen["clean-up"]["state"] == "passed"


@pytest.mark.parametrize(
    ("change", "arguments", "line"),
    [
        ("", [], "--uri: expected a folder on an object store, got ''; allowed: s3://BUCKET/FOLDER"),
        ("", ["--uri", "s3://b/f", "--image", "registry:5000/milcore"], "--image: expected a name with a tag"),
        ("AWS_ENDPOINT_URL", ["--uri", "s3://b/f"], "got no AWS_ENDPOINT_URL"),
    ],
)
def test_settings_that_are_missing_are_bad_input(
    surroundings: MakeSurroundings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], change: str, arguments: list[str], line: str,
) -> None:  # fmt: skip
    place = surroundings()
    for key, value in KEYS.items():
        monkeypatch.setenv(key, "" if key == change else value)
    assert main([*arguments, "--json", str(tmp_path / "rows.json")]) == InputError.exit_code
    assert line in capsys.readouterr().out
    assert place.stage.calls == []


def test_a_case_is_run_after_those_it_builds_on() -> None:
    assert [case.name for case in chosen_cases(["head killed"])] == [
        "overlay",
        "cohort",
        "encode by rayjob",
        "head killed",
    ]
