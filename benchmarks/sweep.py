"""Requests and time of a sweep whose trials share features on the machine's disk, and of one whose trials do not.

``python -m benchmarks.sweep [--slides 60] [--instances 1000] [--trials 4] [--workers 2] [--epochs 4] [--ms 20]``

A store of ``benchmarks.scale`` lies in a bucket of SeaweedFS on this machine, behind a proxy that holds each request
for ``--ms`` and counts it. ``milcore tune`` runs with its default disk cache and with ``--disk-cache-mb 0``, each with
features that fit the memory of a trial (``cache_mb`` 1000) and that do not (1). Seconds are those of the command with a
Ray of its own; requests, and bytes read, are those of all its processes.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import milcore as mc
from benchmarks.scale.__main__ import start_storage
from benchmarks.scale.cases import Case, write_files
from tests.proxy import ProxyProcess

NO_SETTING: dict[str, float] = {}
PROGRAM = "from milcore.cli.main import main; main()"


def sweep(store: str, out: str, given: argparse.Namespace, **settings: float) -> None:
    """Run the command in a process of its own."""
    values = {"trials": given.trials, "workers": given.workers, "epochs": given.epochs, **settings}
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in values.items()]
    subprocess.run(
        [sys.executable, "-c", PROGRAM, "tune", store, out, "--features=imported", *flags],
        check=True,
        capture_output=True,
    )


def measure(store: str, out: str, given: argparse.Namespace, proxy: ProxyProcess, **settings: float) -> str:
    """A row of the table."""
    proxy.take()
    begun = time.perf_counter()
    sweep(store, out, given, **settings)
    seconds, taken = time.perf_counter() - begun, proxy.take()
    memory = "fit" if settings["cache_mb"] > 1 else "do not fit"
    disk = "none" if settings.get("disk_cache_mb") == 0 else "shared"
    counts = f"{taken['GET']:,} | {taken['requests']:,} | {taken['bytes_read'] / 1e6:,.0f}"
    return f"| {memory} | {disk} | {counts} | {seconds:.0f} | {os.getloadavg()[0]:.0f} |"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slides", type=int, default=60)
    parser.add_argument("--instances", type=int, default=1000, help="of each slide, 1024 features f2 (default: 1000)")
    parser.add_argument("--trials", type=int, default=4)
    parser.add_argument("--workers", type=int, default=2, help="trials at a time (default: 2)")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--ms", type=float, default=20.0, help="that each request is held (default: 20)")
    given = parser.parse_args()
    with ExitStack() as stack:
        proxy = start_storage(Path(stack.enter_context(tempfile.TemporaryDirectory())), stack)
        case, uri = Case(given.slides, given.instances), "s3://milcore/sweep"
        write_files(case, uri)
        mc.import_cohort(f"{uri}/h5", f"{uri}/store", format="stamp", labels=f"{uri}/labels.csv")
        os.environ["AWS_ENDPOINT_URL"] = proxy.url
        proxy.hold(given.ms / 1000)
        print("| features in a trial's memory | on disk | GETs | requests | MB read | seconds | load |")
        print("|---|---|---:|---:|---:|---:|---:|")
        for cache_mb in (1000.0, 1.0):
            for disk in NO_SETTING, {"disk_cache_mb": 0.0}:
                out = f"{uri}/{cache_mb:g}-{len(disk)}"
                print(measure(f"{uri}/store", out, given, proxy, cache_mb=cache_mb, **disk), flush=True)


if __name__ == "__main__":
    main()
