"""One process at a time holds the lease of a folder, and a killed one does not keep it."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from milcore.errors import BusyError
from milcore.runtime import lease as lease_file
from milcore.runtime import storage
from milcore.runtime.lease import lease

HOLD = """
import sys, time
from milcore.runtime.lease import lease
with lease(sys.argv[1], "sweep", every_s=0.1):
    print("held", flush=True)
    sys.stdin.read()
"""


def hold(folder_uri: str) -> subprocess.Popen[str]:
    """A process that holds the lease until its input ends."""
    command = [sys.executable, "-c", HOLD, folder_uri]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def with_holder(folder_uri: str, name: str, **fields: str) -> dict[str, str]:
    """Change fields of a lease, as another process would have written them."""
    uri = storage.join(folder_uri, name)
    holder: dict[str, str] = storage.read_json(uri) | fields
    storage.write_json(uri, holder)
    return holder


def test_a_lease_is_refused_while_another_process_holds_it_and_free_after(folder_uri: str) -> None:
    process = hold(folder_uri)
    line = rf"the sweep at {folder_uri} is being worked on by another process \(host .*, pid {process.pid}, since 2"
    with pytest.raises(BusyError, match=line), lease(folder_uri, "sweep"):
        pass
    process.communicate()
    assert process.returncode == 0
    with lease(folder_uri, "sweep"):
        assert storage.names(folder_uri) == ["lease.0"]
    assert storage.names(folder_uri) == []


def test_a_killed_holder_is_known_at_once_and_a_stopped_one_still_holds(folder_uri: str) -> None:
    process = hold(folder_uri)
    process.send_signal(signal.SIGSTOP)
    with pytest.raises(BusyError), lease(folder_uri, "sweep"):
        pass
    process.kill()
    process.communicate()
    with lease(folder_uri, "sweep"):
        assert storage.names(folder_uri) == ["lease.1"]


def test_another_process_of_the_same_id_is_not_the_holder(folder_uri: str) -> None:
    with lease(folder_uri, "run", every_s=600.0):
        with_holder(folder_uri, "lease.0", started="1")
        with lease(folder_uri, "run"):
            assert storage.names(folder_uri) == ["lease.1"]


def test_a_holder_on_another_machine_lives_while_its_lease_changes(
    folder_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = hold(folder_uri)
    monkeypatch.setattr(lease_file, "_machine", lambda: "another")
    with pytest.raises(BusyError, match=f"pid {process.pid}"), lease(folder_uri, "sweep"):
        pass
    process.communicate()


def test_a_lease_of_another_machine_that_no_one_renews_is_lost_and_its_holder_ends(
    folder_uri: str, capfd: pytest.CaptureFixture[str]
) -> None:
    process = hold(folder_uri)
    process.send_signal(signal.SIGSTOP)
    with_holder(folder_uri, "lease.0", machine="another")
    assert lease_file._are_lost(folder_uri, {0}, "sweep", after_s=0.2)
    assert "waiting up to 0.2 s for a sign of it" in capfd.readouterr().err
    storage.write_json(storage.join(folder_uri, "lease.1"), {})
    process.send_signal(signal.SIGCONT)
    assert process.wait() == 1  # its input stays open: closed, it could release the lease before it looks at it again
    _, log = process.communicate()
    assert f"another process took over {folder_uri}" in log
    assert storage.names(folder_uri) == ["lease.1"]


def test_of_many_at_once_one_holds_a_lease_that_a_killed_process_left(folder_uri: str) -> None:
    process = hold(folder_uri)
    process.kill()
    process.communicate()
    together, over, outcomes = threading.Barrier(6), threading.Event(), []

    def attempt() -> None:
        together.wait()
        try:
            with lease(folder_uri, "sweep"):
                outcomes.append("held")
                over.wait()
        except BusyError:
            outcomes.append("busy")

    threads = [threading.Thread(target=attempt) for _ in range(6)]
    for thread in threads:
        thread.start()
    while len(outcomes) < 6:
        time.sleep(0.01)
    over.set()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["busy"] * 5 + ["held"]
    assert storage.names(folder_uri) == []


def test_a_lease_says_who_holds_it(folder_uri: str) -> None:
    with lease(folder_uri, "run"):
        holder = json.loads(storage.read_bytes(storage.join(folder_uri, "lease.0")))
    assert holder["pid"] == str(os.getpid())
