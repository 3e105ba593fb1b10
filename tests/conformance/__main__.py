# ruff: noqa: T201 - a program that prints its table
"""``python -m tests.conformance``: what works on the cluster that KUBECONFIG names, in a table.

Without KUBECONFIG, or with --fake, launcher and doctor run against a fake API; what only a cluster shows is not run.
"""

import argparse
import functools
import os
import signal
import sys
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from kubernetes import config

from milcore.errors import InputError
from milcore.runtime.command import Termination, signal_handler
from tests.conformance import network, refusals
from tests.conformance.case import Case, Place
from tests.conformance.clean_up import CleanUp, remove_jobs, remove_namespace, remove_objects
from tests.conformance.cluster import Cluster
from tests.conformance.kubeflow import Kubeflow
from tests.conformance.objects import NAME, SELECTOR, read_settings
from tests.conformance.report import Row, has_failed, table, write_json
from tests.conformance.runner import error_line, not_run, run_cases
from tests.conformance.table import chosen_cases

JSON = "build/conformance.json"
ARTIFACTS = "s3://mlpipeline/v2/artifacts"


class Interruption:
    """Handler of SIGINT and SIGTERM: ends the cases, and lets the clean-up go on."""

    def __init__(self) -> None:
        self.is_cleaning = False

    def __call__(self, signum: int, _frame: FrameType | None) -> None:
        if not self.is_cleaning:
            self.is_cleaning = True
            raise Termination(signum)
        print("cleaning up; kill -KILL ends this, and leaves what is there", flush=True)


class Conformance:
    """A run of cases.

    Args:
        cases: the table.
    """

    def __init__(self, cases: Sequence[Case]) -> None:
        self.rows: list[Row] = []
        self.surroundings: dict[str, str] = {}
        self.clean_up = CleanUp()
        self._cases = cases

    def run(self, open_places: "OpenPlaces") -> int:
        """Run the cases and clean up, whatever ends them; the exit code."""
        interruption, code = Interruption(), 0
        with signal_handler(interruption):
            try:
                code = self._run_cases(open_places)
            except Termination as ended:
                code = self._leave_out(f"stopped by {signal.Signals(ended.signum).name}", 128 + ended.signum)
            finally:
                interruption.is_cleaning = True
                if (row := self.clean_up.run()) is not None:
                    self._add(row)
        return code or int(has_failed(self.rows))

    def _run_cases(self, open_places: "OpenPlaces") -> int:
        try:
            places = open_places(self)
        except Exception as error:  # noqa: BLE001 - what is made so far is removed, whatever it is
            return self._leave_out(error_line(error), getattr(error, "exit_code", 1))
        for row in run_cases(self._cases, places, lambda case: print(f"{case.name} …", flush=True)):
            self._add(row)
        return 0

    def _add(self, row: Row) -> None:
        self.rows.append(row)
        print(f"{row.case}: {row.seen}" + (f" ({row.state}, {row.seconds:.1f} s)" if row.where else ""), flush=True)

    def _leave_out(self, reason: str, code: int) -> int:
        """Rows of the cases that are not reached any more."""
        print(f"conformance: {reason}", flush=True)
        self.rows += [not_run(case, reason) for case in self._cases[len(self.rows) :]]
        return code


OpenPlaces = Callable[[Conformance], dict[Place, Any]]


def fake_places(run: Conformance) -> dict[Place, Any]:
    """No cluster: recorded answers only."""
    run.surroundings["cluster"] = "none"
    return {"fake": None}


def cluster_places(given: Mapping[str, Any], run: Conformance) -> dict[Place, Any]:
    """Namespaces of the cluster, made for this run, and Kubeflow at a host."""
    settings = read_settings(given["image"], given["uri"], os.environ)
    api = config.new_client_from_config()  # that of KUBECONFIG, in a pod too, as kubectl takes it
    cluster = Cluster(api, f"{NAME}-{uuid.uuid4().hex[:6]}", settings)
    print(f"namespace {cluster.name}; if it is left: kubectl delete namespace -l {SELECTOR}", flush=True)
    version = cluster.api.get("/version")["gitVersion"]
    run.surroundings |= {"cluster": f"{version} at {cluster.api.host}", "image": settings.image, "uri": cluster.uri()}
    prepare(cluster, run.clean_up)
    places: dict[Place, Any] = {"cluster": cluster, "fake": None}
    if given["kfp"]:
        run.surroundings["kubeflow"] = given["kfp"]
        places["kubeflow"] = _kubeflow(given, cluster, Cluster(api, given["kfp_namespace"], settings))
        run.clean_up.add("Kubeflow's runs", places["kubeflow"].remove)
    return places


def prepare(cluster: Cluster, clean_up: CleanUp) -> None:
    """Make the namespace, having said first how all that the cases make is removed."""
    refused, other = cluster.beside(refusals.SUFFIX), cluster.beside(network.SUFFIX)
    for place in (cluster, refused, other):
        clean_up.add(place.name, functools.partial(remove_namespace, place))
    clean_up.add("objects", functools.partial(remove_objects, cluster))
    for place in (cluster, refused):
        clean_up.add("RayJobs, pods", functools.partial(remove_jobs, place))
    cluster.create_namespace()
    cluster.prepare()


def _kubeflow(given: Mapping[str, Any], cluster: Cluster, place: Cluster) -> Kubeflow:
    from kfp import Client  # noqa: PLC0415 - takes seconds
    from kfp.client import ServiceAccountTokenVolumeCredentials  # noqa: PLC0415 - as above

    token = given["token_file"]
    client = Client(host=given["kfp"], credentials=ServiceAccountTokenVolumeCredentials(token) if token else None)
    return Kubeflow(client, given["kfp"], cluster, place, token, given["kfp_artifacts"].rstrip("/"))


def main(arguments: Sequence[str]) -> int:
    """Run the cases; 0 where none has failed."""
    given = vars(_parser().parse_args(arguments))
    try:
        run = Conformance(chosen_cases(given["only"] or []))
    except InputError as error:
        print(f"conformance: {error.line}", file=sys.stderr)
        return error.exit_code
    is_fake = given["fake"] or not os.environ.get("KUBECONFIG")
    code = run.run(fake_places if is_fake else functools.partial(cluster_places, given))
    print(f"\n{table(run.rows)}")
    write_json(Path(given["json"]), run.rows, run.surroundings)
    print(given["json"])
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.conformance", description=__doc__)
    parser.add_argument("--fake", action="store_true", help="the fake API, whatever KUBECONFIG says")
    parser.add_argument("--uri", default="", help="folder on s3:// that the cluster's pods write to")
    parser.add_argument("--image", default="", help="image of every pod [default: milcore:VERSION]")
    parser.add_argument("--only", action="append", metavar="CASE", help="this case, and others named so")
    parser.add_argument("--json", default=JSON, metavar="FILE", help=f"[default: {JSON}]")
    parser.add_argument("--kfp", default="", metavar="HOST", help="address of Kubeflow Pipelines [default: none]")
    parser.add_argument("--kfp-namespace", default="kubeflow", help="of its steps [default: kubeflow]")
    parser.add_argument("--kfp-artifacts", default=ARTIFACTS, help=f"folder of its artifacts [default: {ARTIFACTS}]")
    parser.add_argument("--token-file", default="", help="bearer token of Kubeflow Pipelines")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
