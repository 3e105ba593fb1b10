"""Submission of a run to a Kubeflow Pipelines API, and following it."""

import contextlib
import os
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kfp import Client
from kfp.client import KF_PIPELINES_SA_TOKEN_ENV, ServiceAccountTokenVolumeCredentials
from kfp.dsl.base_component import BaseComponent
from kfp_server_api import ApiException
from urllib3.exceptions import HTTPError

from milcore import api
from milcore.errors import InputError, MILError

SECONDS_BETWEEN_CALLS = 5.0
# how long an API may stay away while a run is followed
SECONDS_AWAY = 300.0
ENDED = ("SUCCEEDED", "SKIPPED", "FAILED", "ERROR", "CANCELED")
SERVER_ERROR = 500
TOO_MANY_REQUESTS = 429


def submit_pipeline(pipeline: BaseComponent, arguments: dict[str, Any], given: dict[str, Any]) -> None:
    """Start a run and print its id.

    With ``wait``, print its states until it has ended, and fetch its report.


    Raises:
        InputError: there is no token file where one is named.
        MILError: the API refuses or does not answer, the run fails, or it takes longer than ``wait``.
    """
    credentials = _credentials(given["token_file"])
    with _one_line_errors(given["host"]):
        with warnings.catch_warnings():
            # that it is for version 2 of the API
            warnings.filterwarnings("ignore", category=FutureWarning)
            # the namespace is the run's; the client would look for the API itself there
            client = Client(host=given["host"], credentials=credentials)
        sent = client.create_run_from_pipeline_func(
            pipeline, arguments=arguments, experiment_name=given["experiment"], namespace=given["namespace"]
        )
    print(sent.run_id)
    if given["wait"]:
        state = _wait(client, sent.run_id, given["wait"])
        if state != "SUCCEEDED":
            raise _failure(sent.run_id, state, given)
        if given["report"]:
            _download_report(given["run_uri"], given["report"])


def _credentials(file: str | None) -> ServiceAccountTokenVolumeCredentials | None:
    """Credentials of a token file.

    It is read again for every call, since the token of a pod is renewed while a run is followed.
    """
    path = file or os.environ.get(KF_PIPELINES_SA_TOKEN_ENV)
    if path is None:
        return None
    try:
        Path(path).read_text()
    except OSError as error:
        raise InputError(f"--token-file {path}: {error.strerror}; allowed: a file that holds the token") from None
    return ServiceAccountTokenVolumeCredentials(path)


@contextlib.contextmanager
def _one_line_errors(host: str | None) -> Iterator[None]:
    """Turn what the API or the connection to it refuses into one line."""
    where = host or "the cluster's own address"
    try:
        yield
    except ApiException as error:
        reason = " ".join(str(error.body or error.reason).split())
        raise MILError(
            f"the Kubeflow Pipelines API at {where} refuses: {error.status} {reason}; a token goes in by --token-file, "
            "a profile by --namespace"
        ) from None
    except (HTTPError, OSError) as error:
        raise MILError(f"no Kubeflow Pipelines API answers at {where}: {error}; give its address by --host") from None


def _wait(client: Client, run_id: str, seconds: int) -> str:
    """Print the run's state whenever it changes; the one it has ended with.

    An API that does not answer is asked again.
    """
    state, until = "", time.monotonic() + seconds
    while state not in ENDED:
        if time.monotonic() > until:
            raise MILError(f"run {run_id} is {state} after {seconds} s; it goes on without this command")
        if state:
            time.sleep(SECONDS_BETWEEN_CALLS)
        before, state = state, _state(client, run_id)
        if state != before:
            print(state, flush=True)
    return state


def _failure(run_id: str, state: str, given: dict[str, Any]) -> MILError:
    """The error of the step that ended a run, with its exit code."""
    failure = api.pipeline_failure(given["run_uri"], given.get("out_uri"), run_id)
    if failure is None:
        return MILError(f"run {run_id} ended as {state}; its steps and logs are in the Kubeflow UI")
    step, line, exit_code = failure
    kind = InputError if exit_code == InputError.exit_code else MILError
    return kind(f"run {run_id} ended as {state}, step {step}: {line}")


def _state(client: Client, run_id: str) -> str:
    until = time.monotonic() + SECONDS_AWAY
    while True:
        try:
            return str(client.get_run(run_id).state)
        except (ApiException, HTTPError, OSError) as error:
            status = error.status if isinstance(error, ApiException) else SERVER_ERROR
            if (status < SERVER_ERROR and status != TOO_MANY_REQUESTS) or time.monotonic() > until:
                reason = " ".join(str(error).split())
                raise MILError(f"lost run {run_id}, which goes on without this command: {reason}") from None
        time.sleep(SECONDS_BETWEEN_CALLS)


def _download_report(run_uri: str, file: str) -> None:
    from milcore.runtime import storage  # noqa: PLC0415 - compiling works without what storage needs

    report = storage.join(run_uri, "report.html")
    try:
        storage.download(report, file)
    except storage.IO_ERRORS as error:
        raise MILError(f"the run has succeeded, but {report} cannot be copied to {file}: {error}") from None
    print(file)
