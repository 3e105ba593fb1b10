"""Without a cluster recorded answers are run, and nothing else; a fault of the product is a row that fails."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from milcore.cluster.doctor import installation
from milcore.cluster.jobs import rayjob
from milcore.cluster.jobs.follow import Follower
from tests.conformance import recordings
from tests.conformance.__main__ import main
from tests.conformance.recordings import Recording
from tests.conformance.runner import run_cases
from tests.conformance.table import CASES, ON_CLUSTER, ON_KUBEFLOW, RECORDED


def states() -> dict[str, str]:
    return {row.case: row.state for row in run_cases(RECORDED, {"fake": None})}


@pytest.mark.parametrize(("arguments", "kubeconfig"), [([], ""), (["--fake"], "a-cluster's")])
def test_without_a_cluster_what_only_a_cluster_shows_is_not_run(
    arguments: list[str],
    kubeconfig: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("KUBECONFIG", kubeconfig)
    assert main([*arguments, "--json", str(tmp_path / "build" / "rows.json")]) == 0
    values = json.loads((tmp_path / "build" / "rows.json").read_text())
    seen = {row["case"]: (row["state"], row["seen"]) for row in values["rows"]}
    assert {case.name: seen[case.name][0] for case in RECORDED} == {case.name: "passed" for case in RECORDED}
    for case in (*ON_CLUSTER, *ON_KUBEFLOW):
        assert seen[case.name] == ("not run", "not run: no cluster")
    assert (values["ok"], values["counts"]) == (True, {"passed": len(RECORDED), "not run": len(CASES) - len(RECORDED)})
    assert f"{len(RECORDED)} passed, 0 failed, {len(CASES) - len(RECORDED)} not run" in capsys.readouterr().out


def test_names_of_cases_are_their_own_and_what_they_build_on_is_before_them() -> None:
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names)
    for index, case in enumerate(CASES):
        assert case.after == "" or case.after in names[:index], case.name


def test_every_recording_names_its_source() -> None:
    made = [value for value in vars(recordings).values() if isinstance(value, Recording)]
    assert len(made) >= 12
    for recording in made:
        assert any(name in recording.source for name in (".go", ".py")), recording


Break = Callable[[pytest.MonkeyPatch], object]


def never_again(patch: pytest.MonkeyPatch) -> None:
    """One attempt only."""
    patch.setattr(rayjob, "ATTEMPTS", 1)


def no_adoption(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(rayjob.Launcher, "_is_over", lambda *_: True)


def no_removal(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(rayjob.Launcher, "_remove_jobs", lambda _: None)


def silence(patch: pytest.MonkeyPatch) -> None:
    """What a job waits for is told nowhere."""
    patch.setattr(Follower, "_show_waits", lambda *_: None)


def log_twice(patch: pytest.MonkeyPatch) -> None:
    show = Follower._show_log

    def again(self: Follower, pods: object) -> None:
        shown = self._shown
        show(self, pods)  # type: ignore[arg-type]
        self._shown = shown

    patch.setattr(Follower, "_show_log", again)


def blind_doctor(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(installation, "quota_findings", lambda *_: iter(()))


LOSSES = {"recorded: lost head", "recorded: lost supervisor", "recorded: lost submitter", "recorded: RayJob deleted"}


@pytest.mark.parametrize(
    ("breakage", "rows"),
    [
        (never_again, LOSSES),
        (no_adoption, {"recorded: adopt"}),
        (no_removal, {"recorded: submit"}),
        (silence, {"recorded: quota", "recorded: secret missing", "recorded: image missing"}),
        (log_twice, {"recorded: follow"}),
        (blind_doctor, {"recorded: doctor, quota"}),
    ],
)
def test_a_behaviour_that_is_broken_is_a_row_that_fails(
    breakage: Break, rows: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    breakage(monkeypatch)
    assert {name for name, state in states().items() if state == "failed"} == rows


def test_a_failure_is_exit_code_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    never_again(monkeypatch)
    assert main(["--fake", "--only", "recorded: lost head", "--json", str(tmp_path / "rows.json")]) == 1
    (row,) = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert (row["state"], row["expected"]) == ("failed", "the next RayJob after a pause")
    assert "Submitter completed but Ray job not found in RayCluster." in row["seen"]


def test_an_unknown_case_is_bad_input(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--fake", "--only", "no such"]) == 2
    assert "expected names of cases, got no such; allowed: those of the table" in capsys.readouterr().err
