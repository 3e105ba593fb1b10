"""Any command, killed at any moment and run again, ends as if it had never been disturbed.

A moment is drawn over the time that the command takes, or is one of its writes: before a file or folder is changed; on
S3 before a request arrives or before its answer does.
"""

import os
import random
import signal
import threading
import uuid
from collections.abc import Callable

import pytest

from milcore.runtime import storage
from tests.faults.commands import (
    COMMANDS,
    Cohort,
    Command,
    check_catalogue,
    contents,
    make_cohort,
    unknown_slides,
)
from tests.faults.processes import LONGEST_S, Child, has_traceback
from tests.faults.proxy import FaultyProxy, Stop

PLACES = ("local", "s3")
Cohorts = Callable[[str], Cohort]


@pytest.fixture(scope="session")
def cohort_at(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Cohorts:
    """The cohort on a kind of storage, made once."""
    made: dict[str, Cohort] = {}

    def at(place: str) -> Cohort:
        if place not in made:
            folder = tmp_path_factory.mktemp("cohort")
            uri = f"{request.getfixturevalue('s3')}/{uuid.uuid4().hex}" if place == "s3" else str(folder / "cohort")
            made[place] = make_cohort(folder / "files", uri)
        return made[place]

    return at


class Runs:
    """A command on a kind of storage, in a folder of its own each time.

    Attributes:
        undisturbed: what it writes when nothing disturbs it.
        seconds: that it takes then.
        writes: changes of files, or requests to S3 that change something, that it makes then.
    """

    def __init__(self, cohort: Cohort, command: Command) -> None:
        self._cohort, self._command = cohort, command
        self.is_local = storage.is_local(cohort.uri)
        out = self.new_folder()
        if self.is_local:
            child = self.start(out)
            self.undisturbed = self.end(child, out)
            self.writes = child.writes
        else:
            proxy = FaultyProxy(os.environ["AWS_ENDPOINT_URL"])
            child = self.start(out, endpoint=proxy.url)
            self.undisturbed = self.end(child, out)
            self.writes = proxy.writes
            proxy.close()
        self.seconds = child.age_s

    def new_folder(self) -> str:
        """A folder in which the command can begin."""
        out = storage.join(self._cohort.uri, uuid.uuid4().hex)
        self.begin(out)
        return out

    def begin(self, out: str) -> None:
        """Copy what the command changes into a folder."""
        self._cohort.begin(self._command, out)

    def start(
        self, out: str, signal_at: int = 0, number: signal.Signals = signal.SIGKILL, endpoint: str | None = None
    ) -> Child:
        """The command, in a process of its own."""
        environment = {} if endpoint is None else {"AWS_ENDPOINT_URL": endpoint}
        arguments = self._cohort.arguments(self._command, out)
        return Child(arguments, out if self.is_local else "", signal_at, number, environment)

    def end(self, child: Child, out: str) -> dict[str, bytes | str]:
        """What the command has written, which has to succeed."""
        code = child.end()
        assert (code, has_traceback(child.log)) == (0, False), child.log[-3000:]
        return contents(out)

    def kill_after(self, out: str, seconds: float) -> None:
        """Begin, and be killed after so long."""
        child = self.start(out)
        child.wait(seconds)
        child.kill()

    def kill_at_write(self, out: str, write: int, *, is_passed_on: bool) -> None:
        """Begin, and be killed at one of the writes."""
        if self.is_local:
            child = self.start(out, write)
            child.wait()
            child.kill()
            return
        proxy = FaultyProxy(os.environ["AWS_ENDPOINT_URL"])
        child = self.start(out, endpoint=proxy.url)
        proxy.stop = Stop(write, is_passed_on, lambda: child.signal(signal.SIGKILL))
        child.wait()
        child.kill()
        proxy.close()


def check_kills(runs: Runs, kills: int, seed: str) -> None:
    """Kill a command so often, each time in a new folder, and run it again."""
    generator = random.Random(seed)  # noqa: S311 - a moment, not a secret
    for number in range(kills):
        out = runs.new_folder()
        if number % 3:
            write, is_passed_on = generator.randint(1, runs.writes), generator.random() < 0.5
            moment = f"at write {write} of {runs.writes}, passed on: {is_passed_on}"
            runs.kill_at_write(out, write, is_passed_on=is_passed_on)
        else:
            after_s = generator.uniform(0.0, runs.seconds)
            moment = f"after {after_s:.3f} of {runs.seconds:.3f} s"
            runs.kill_after(out, after_s)
        check_catalogue(out)
        assert differences(runs.end(runs.start(out), out), runs.undisturbed) == [], f"killed {moment}"
        assert unknown_slides(out) == [], f"killed {moment}"
        storage.remove_folder(out)


def differences(one: dict[str, bytes | str], other: dict[str, bytes | str]) -> list[str]:
    """Paths of the objects that are not equal, or are missing in one."""
    return sorted(path for path in one | other if one.get(path) != other.get(path))


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_killed_at_any_moment_ends_as_undisturbed(name: str, place: str, cohort_at: Cohorts) -> None:
    check_kills(Runs(cohort_at(place), COMMANDS[name]), 3, f"3 {name} {place}")


@pytest.mark.long
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_killed_thirty_times_ends_as_undisturbed(name: str, place: str, cohort_at: Cohorts) -> None:
    check_kills(Runs(cohort_at(place), COMMANDS[name]), 30, f"30 {name} {place}")


class Paused:
    """A command that waits before one of its writes, once it is there, until it is told to go on."""

    def __init__(self, runs: Runs, out: str, write: int) -> None:
        self._proxy = None if runs.is_local else FaultyProxy(os.environ["AWS_ENDPOINT_URL"])
        self._here, self._goes_on = threading.Event(), threading.Event()
        if self._proxy is None:
            self.child = runs.start(out, write, signal.SIGSTOP)
            self.child.wait_until_stopped()
            return
        self._proxy.stop = Stop(write, is_passed_on=False, action=self._wait)
        self.child = runs.start(out, endpoint=self._proxy.url)
        while not self._here.wait(0.01) and self.child.wait(0.0) is None:
            pass

    def go_on(self) -> int:
        """Exit code."""
        self._goes_on.set()
        if self._proxy is None:
            self.child.signal(signal.SIGCONT)
        code = self.child.end()
        if self._proxy is not None:
            self._proxy.close()
        return code

    def _wait(self) -> bool:
        self._here.set()
        return self._goes_on.wait(LONGEST_S)


def check_pairs(runs: Runs, pairs: int, seed: str) -> None:
    """Run a command twice at once in one folder: as one, or one of them ends with a line that says why.

    The first waits at one of its writes until the second is at one of its own, which waits until the first has ended.
    """
    generator = random.Random(seed)  # noqa: S311 - a moment, not a secret
    for _ in range(pairs):
        out = runs.new_folder()
        writes = generator.randint(1, runs.writes), generator.randint(1, runs.writes)
        first, second = (Paused(runs, out, write) for write in writes)
        ends = [(paused.go_on(), paused.child.log) for paused in (first, second)]
        where = f"waiting at writes {writes} of {runs.writes}"
        assert 0 in dict(ends), (where, ends)
        assert all(is_one_line(log) for code, log in ends if code), (where, ends)
        assert not any(has_traceback(log) for _, log in ends), (where, ends)
        assert differences(contents(out), runs.undisturbed) == [], where
        storage.remove_folder(out)


def is_one_line(log: str) -> bool:
    """A command's output ends with its error as one line."""
    return log.splitlines()[-1].startswith("milcore: ")


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", COMMANDS)
def test_two_of_a_command_at_once_end_as_one(name: str, place: str, cohort_at: Cohorts) -> None:
    check_pairs(Runs(cohort_at(place), COMMANDS[name]), 2, f"2 {name} {place}")


@pytest.mark.long
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", COMMANDS)
def test_thirty_pairs_of_a_command_end_as_one(name: str, place: str, cohort_at: Cohorts) -> None:
    check_pairs(Runs(cohort_at(place), COMMANDS[name]), 30, f"30 {name} {place}")
