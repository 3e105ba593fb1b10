"""Time, requests and memory of every command on cohorts of many slides, beside a file per slide.

``python -m benchmarks.scale [--case 300x5000 …] [--where local s3-1 s3-20] [--step STEP …] [--work FOLDER] [--again]``

A case is a number of slides by a number of instances, each 1024 features f2 of noise; any is taken, ``60x8`` to try it.
Its files are h5 as STAMP writes them and a .pt tensor for each slide; its store is what ``milcore import`` makes of the
h5 files. ``local`` is a folder; ``s3-N`` a bucket of SeaweedFS on this machine behind a proxy that holds every request
for N ms and counts it. Cases are made without the proxy.

Each step runs in a process of its own, which has imported everything before its clock starts, on one thread. Requests
are those that passed the proxy meanwhile. ``train`` is two epochs with default settings; its first step is the end of
the first optimizer step since the command began, ``train on Ray`` since Ray was up. Files per slide are read one after
another, as their own loaders do within one process, for 30 s at most: ``per slide`` is by those that were read.

A row is kept in ``rows.jsonl`` of the work folder as soon as it is measured, and the same command goes on with those
that are missing. ``--table`` prints them.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.scale.cases import CASES, Case, write_files
from benchmarks.scale.steps import STEPS
from benchmarks.scale.table import table
from milcore.runtime import storage
from milcore.runtime.limits import cpus
from tests.conftest import free_ports
from tests.proxy import ProxyProcess
from tests.seaweedfs import s3_environment, seaweedfs

SECRET = "benchmark"  # noqa: S105 - of a server on the loopback interface, for as long as it is measured
WHERE = ("local", "s3-1", "s3-20")
VOLUMES = ("-volume.max=2000", "-master.volumeSizeLimitMB=1000")
Row = dict[str, Any]


def main() -> None:
    """Measure what is missing, and print all rows."""
    given = arguments()
    rows_file = Path(given.work, "rows.jsonl")
    rows_file.parent.mkdir(parents=True, exist_ok=True)
    if not given.table:
        for row in measure(given, [] if given.again else read_rows(rows_file)):
            with rows_file.open("a") as file:
                file.write(f"{json.dumps(row)}\n")
            print(json.dumps(row), flush=True)
    print(table(read_rows(rows_file)))


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scale", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--case", nargs="+", default=[case.name for case in CASES], metavar="SLIDESxINSTANCES")
    parser.add_argument("--where", nargs="+", default=WHERE, metavar="PLACE", help="local, or s3-N for N ms a request")
    parser.add_argument("--step", nargs="+", default=list(STEPS), choices=STEPS)
    parser.add_argument("--work", default=str(Path(tempfile.gettempdir(), "milcore-scale")), help="folder, tens of GB")
    parser.add_argument("--again", action="store_true", help="measure rows anew that are there")
    parser.add_argument("--table", action="store_true", help="only print the rows that are there")
    return parser.parse_args()


def read_rows(path: Path) -> list[Row]:
    """All rows; of equal case, place and step the last one."""
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return list({(row["case"], row["where"], row["step"]): row for row in rows}.values())


def measure(given: argparse.Namespace, done: list[Row]) -> Iterator[Row]:
    """The rows that are asked for and not done."""
    there = {(row["case"], row["where"], row["step"]) for row in done}
    with ExitStack() as stack:
        proxy = start_storage(Path(given.work), stack) if any(where != "local" for where in given.where) else None
        for name in given.case:
            case = Case(*map(int, name.split("x")))
            for where in given.where:
                steps = [step for step in given.step if (name, where, step) not in there]
                if steps:
                    uri = f"{given.work}/cases/{name}" if where == "local" else f"s3://milcore/{name}"
                    made = make(case, uri)
                    yield from [made] if (name, made["where"], "import") not in there else []
                    yield from (measure_step(step, case, where, uri, proxy) for step in steps if step != "import")


def start_storage(work: Path, stack: ExitStack) -> ProxyProcess:
    """The server with what it holds from earlier, and the proxy before it."""
    folder, ports = work / "seaweedfs", free_ports(5)
    folder.mkdir(parents=True, exist_ok=True)
    os.environ.update(s3_environment(ports[0], SECRET))
    stack.enter_context(seaweedfs(folder, ports, *VOLUMES))
    return stack.enter_context(ProxyProcess(os.environ["AWS_ENDPOINT_URL"]))


def make(case: Case, uri: str) -> Row:
    """Make the case where it is not complete; the row of its import."""
    if storage.exists(f"{uri}/made.json"):
        made: Row = storage.read_json(f"{uri}/made.json")
        return made
    begun = time.perf_counter()
    write_files(case, uri)
    files_s = time.perf_counter() - begun
    where = "local" if storage.is_local(uri) else "s3-0"
    row = {"case": case.name, "where": where, "step": "import", "files_s": files_s}
    row |= run_step("import", case, uri, f"{uri}/out", {}) | {"load": os.getloadavg()[0]}
    storage.write_json(f"{uri}/made.json", row)
    return row


def measure_step(step: str, case: Case, where: str, uri: str, proxy: ProxyProcess | None) -> Row:
    """One row."""
    out, endpoint = f"{uri}/out-{where}", {}
    if proxy is not None and where != "local":
        proxy.hold(float(where.removeprefix("s3-")) / 1000)
        proxy.take()
        endpoint = {"AWS_ENDPOINT_URL": proxy.url}
    row = run_step(step, case, uri, out, endpoint)
    traffic = proxy.take() if endpoint and proxy is not None else {}
    load, cores = os.getloadavg()[0], cpus()
    surroundings = {"load": load, "cores": cores, "python": platform.python_version()}
    return {"case": case.name, "where": where, "step": step, **row, **traffic, **surroundings}


def run_step(step: str, case: Case, uri: str, out: str, endpoint: dict[str, str]) -> Row:
    """Run a step in a process of its own; its last line."""
    command = [sys.executable, "-m", "benchmarks.scale.steps", step, uri, str(case.slides), str(case.instances), out]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"} | endpoint
    ended = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    row: Row = json.loads(ended.stdout.splitlines()[-1])
    return row


if __name__ == "__main__":
    main()
