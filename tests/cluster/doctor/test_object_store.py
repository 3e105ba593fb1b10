"""The place of a store, on a real S3 server and a disk: each fault is one line, and nothing stays behind."""

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import s3fs

from milcore.cluster.doctor.object_store import check_uri, store_findings
from milcore.errors import InputError
from milcore.runtime import storage
from milcore.store.fragments import catalogue_uri
from tests.cohorts import write_store
from tests.conftest import free_ports
from tests.proxy import CountingProxy, Fault
from tests.seaweedfs import s3_environment, seaweedfs

CHECKS = ["content", "write", "read", "conditional write", "round trip", "bandwidth"]
IDENTITIES = {
    "writer": ("testkey", "topsecret", ["Admin", "Read", "Write", "List"]),
    "reader": ("readkey", "readsecret", ["Read", "List"]),
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Bucket of a server that knows one key that writes and one that reads."""
    config = tmp_path_factory.mktemp("identities") / "s3.json"
    identities = [
        {"name": name, "credentials": [{"accessKey": key, "secretKey": secret}], "actions": actions}
        for name, (key, secret, actions) in IDENTITIES.items()
    ]
    config.write_text(json.dumps({"identities": identities}))
    ports = free_ports(5)
    with pytest.MonkeyPatch.context() as environment:
        for name, value in s3_environment(ports[0], "topsecret").items():
            environment.setenv(name, value)
        with seaweedfs(tmp_path_factory.mktemp("identified"), ports, f"-s3.config={config}") as uri:
            yield uri


def doctor(uri: str, **environment: str | None) -> subprocess.CompletedProcess[str]:
    """``milcore doctor URI`` in another environment."""
    return run("from milcore.cli.main import main; main()", "doctor", uri, "--json", **environment)


def findings_elsewhere(uri: str, **environment: str | None) -> list[dict[str, str]]:
    """Findings of the place alone, in another environment."""
    program = (
        "import json, sys\nfrom milcore.cluster.doctor.object_store import check_uri, store_findings\n"
        "print(json.dumps([each._asdict() for each in store_findings(check_uri(sys.argv[1]))]))"
    )
    ended = run(program, uri, **environment)
    assert ended.returncode == 0, ended.stderr
    findings: list[dict[str, str]] = json.loads(ended.stdout)
    return findings


def run(program: str, *arguments: str, **environment: str | None) -> subprocess.CompletedProcess[str]:
    """A program in another environment; None takes a variable away."""
    variables = {name: value for name, value in ({**os.environ, **environment}).items() if value is not None}
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=variables)


def objects(uri: str) -> list[str]:
    """Objects of the server that the environment names; milcore's own connection may be to an earlier one."""
    names: list[str] = s3fs.S3FileSystem(skip_instance_cache=True).find(uri)
    return names


def of_store(ended: subprocess.CompletedProcess[str], uri: str) -> list[dict[str, str]]:
    report = json.loads(ended.stdout.splitlines()[-1])
    assert report["ok"] is (ended.returncode == 0)
    return [finding for finding in report["findings"] if finding["area"] == uri]


def test_a_place_that_works_is_ok_and_left_as_it_was(folder_uri: str) -> None:
    findings = list(store_findings(check_uri(folder_uri)))
    expected = ["reach", *CHECKS] if folder_uri.startswith("s3://") else CHECKS
    assert [each.check for each in findings] == expected
    # bandwidth and round trip may be slow here
    assert {each.state for each in findings[: expected.index("round trip")]} == {"ok"}
    assert "new one can be made" in next(each.text for each in findings if each.check == "content")
    if folder_uri.startswith("s3://"):
        assert storage.files(folder_uri) == set()
    else:
        assert not Path(folder_uri).exists()


def test_a_store_is_recognised_and_untouched(folder_uri: str) -> None:
    write_store(folder_uri, slides=2).join_catalogue()
    before = {uri: storage.stat(uri) for uri in storage.files(folder_uri)}
    (content,) = [each for each in store_findings(folder_uri) if each.check == "content"]
    assert content[1:3] == ("ok", "a patch store with a catalogue")
    assert {uri: storage.stat(uri) for uri in storage.files(folder_uri)} == before
    storage.remove_folder(catalogue_uri(folder_uri))
    (content,) = [each for each in store_findings(folder_uri) if each.check == "content"]
    assert (content.state, content.remedy) == ("warning", f"milcore info {folder_uri} --rebuild")


@pytest.mark.parametrize(
    ("environment", "bucket", "check", "text", "remedy"),
    [
        ({"AWS_ACCESS_KEY_ID": "other"}, "milcore", "reach", "does not know the access key", "set AWS_ACCESS_KEY_ID"),
        ({"AWS_SECRET_ACCESS_KEY": "other"}, "milcore", "reach", "secret does not fit", "AWS_SECRET_ACCESS_KEY"),
        (
            {"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None, "HOME": "/nowhere"},
            "milcore", "reach", "no keys", "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        ),
        ({}, "absent", "reach", "there is no bucket absent", "make it, or correct the URI"),
        (
            {"AWS_ACCESS_KEY_ID": "readkey", "AWS_SECRET_ACCESS_KEY": "readsecret"},
            "milcore", "write", "the keys lack s3:PutObject on milcore", "ask the store's administrator",
        ),
        (
            {"AWS_ENDPOINT_URL": "http://127.0.0.1:1"},
            "milcore", "reach", "nothing answers at http://127.0.0.1:1", "set AWS_ENDPOINT_URL",
        ),
        (
            {"AWS_ENDPOINT_URL": None, "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:1"},
            "milcore", "reach", "(AWS_ENDPOINT_URL is not set)", "set AWS_ENDPOINT_URL",
        ),
        ({"AWS_ENDPOINT_URL": "store"}, "milcore", "reach", "no address: Invalid endpoint", "set AWS_ENDPOINT_URL"),
    ],
    ids=["key", "secret", "no keys", "bucket", "read-only", "endpoint", "no endpoint", "no address"],
)  # fmt: skip
def test_a_fault_of_the_object_store_is_one_line_with_what_to_do(
    server: str, environment: dict[str, str | None], bucket: str, check: str, text: str, remedy: str
) -> None:
    uri = f"s3://{bucket}/{uuid.uuid4().hex}"
    *fine, fault = findings_elsewhere(uri, **environment)
    assert {each["state"] for each in fine} <= {"ok"}
    assert (fault["check"], fault["state"]) == (check, "failure")
    assert text in fault["text"]
    assert remedy in fault["remedy"]
    assert "secret" not in fault["text"].replace("the secret does", "")
    assert objects(f"{server}/{uri.rpartition('/')[2]}") == []


def test_a_fault_ends_the_command_with_code_1_and_its_line_without_a_password(server: str) -> None:
    uri = f"{server}/{uuid.uuid4().hex}"
    ended = doctor(uri, AWS_ENDPOINT_URL="http://ann:mypassword@127.0.0.1:1")
    assert ended.returncode == 1, ended.stderr
    (fault,) = of_store(ended, uri)
    assert (fault["check"], fault["state"]) == ("reach", "failure")
    assert "nothing answers at http://***@127.0.0.1:1" in fault["text"]
    assert "set AWS_ENDPOINT_URL" in fault["remedy"]


def test_an_object_that_cannot_be_removed_is_named(server: str) -> None:
    proxy = CountingProxy(os.environ["AWS_ENDPOINT_URL"], lambda method: Fault(403 if method == "DELETE" else None))
    try:
        uri = f"{server}/{uuid.uuid4().hex}"
        ended = doctor(uri, AWS_ENDPOINT_URL=proxy.url)
    finally:
        proxy.close()
    fault = of_store(ended, uri)[-1]
    (remains,) = objects(uri)
    assert (fault["state"], fault["text"]) == ("failure", f"s3://{remains} cannot be removed")
    assert "s3:DeleteObject" in fault["remedy"]


def test_a_folder_without_permission_is_a_failure(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    findings = list(store_findings(str(tmp_path / "file" / "store")))
    assert (findings[-1].check, findings[-1].state) == ("write", "failure")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_a_check_that_is_stopped_removes_its_object(folder_uri: str) -> None:
    findings = store_findings(check_uri(folder_uri))
    while next(findings).check != "write":
        pass
    assert len(storage.files(folder_uri)) == 1
    findings.close()
    remains = storage.files(folder_uri) if folder_uri.startswith("s3://") else list(Path(folder_uri).parent.iterdir())
    assert not remains


@pytest.mark.parametrize("uri", ["https://host/store", "ftp7://host/store"])
def test_a_place_of_another_kind_is_bad_input(uri: str) -> None:
    with pytest.raises(InputError, match="expected"):
        check_uri(uri)
    assert doctor(uri).returncode == InputError.exit_code
