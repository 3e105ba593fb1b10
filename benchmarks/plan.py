"""Time, requests and memory of checking a manifest of many slides and planning its ingestion.

``python -m benchmarks.plan [--slides 100000] [--ms 1 20] [--work FOLDER]``

Slides are objects of one byte, since planning asks for sizes alone, in one folder of a SeaweedFS server of this machine
behind a proxy that holds every request for so many ms and counts it. What is measured is ``milcore.api.plan_ingestion``
into 50 partitions, with manifest and store on the same server, in a process of its own that has imported all it needs.
``local`` has slides, manifest and store in a folder. A work folder that is named keeps the slides for another run.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from benchmarks.memory import resident_mb
from milcore import api
from milcore.ingestion import cohort, partition  # noqa: F401 - what planning imports, before the clock starts
from milcore.runtime import storage
from tests.conftest import free_ports
from tests.proxy import ProxyProcess
from tests.seaweedfs import s3_environment, seaweedfs

SECRET = "testsecret"  # noqa: S105 - of a server on the loopback interface, for as long as it is measured
PARTITIONS = 50
WRITTEN_AT_A_TIME = 5_000
Row = dict[str, float]


def main() -> None:
    """Print a row per place."""
    given = arguments()
    if given.plan:
        print(json.dumps(plan(*given.plan)))
        return
    with ExitStack() as stack:
        work = Path(given.work or stack.enter_context(tempfile.TemporaryDirectory()))
        rows = {"local": measure(write_slides(str(work / "local"), given.slides), str(work / "local" / "store"))}
        ports = free_ports(5)
        os.environ.update(s3_environment(ports[0], SECRET))
        (work / "seaweedfs").mkdir(exist_ok=True)
        folder = f"{stack.enter_context(seaweedfs(work / 'seaweedfs', ports))}/{given.slides}"
        manifest = write_slides(folder, given.slides)
        proxy = stack.enter_context(ProxyProcess(os.environ["AWS_ENDPOINT_URL"]))
        os.environ["AWS_ENDPOINT_URL"] = proxy.url
        for ms in given.ms:
            proxy.hold(ms / 1000)
            proxy.take()
            row = measure(manifest, f"{folder}/store-{time.time_ns()}")
            rows[f"S3, {ms:g} ms added"] = row | {"requests": proxy.take()["requests"]}
    print("| slides on | time, s | processor, s | requests | peak memory, MB |\n|---|---:|---:|---:|---:|")
    for place, row in rows.items():
        figures = f"{row['wall_s']:.1f} | {row['cpu_s']:.1f} | {row.get('requests', 0):.0f} | {row['peak_mb']:.0f}"
        print(f"| {place} | {figures} |")


def arguments() -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--slides", type=int, default=100_000)
    parser.add_argument("--ms", type=float, nargs="+", default=[1.0, 20.0])
    parser.add_argument("--work", help="folder for slides and server [default: a temporary one]")
    parser.add_argument("--plan", nargs=2, metavar=("MANIFEST", "STORE"), help=argparse.SUPPRESS)
    return parser.parse_args()


def write_slides(folder: str, slides: int) -> str:
    """Write slides and their manifest, unless it is there; the manifest's URI."""
    manifest = storage.join(folder, "manifest.csv")
    if storage.exists(manifest):
        return manifest
    names = [f"s{k:06d}" for k in range(slides)]
    fs, root = storage.filesystem(folder)
    fs.makedirs(f"{root}/slides", exist_ok=True)
    for start in range(0, slides, WRITTEN_AT_A_TIME):
        fs.pipe({f"{root}/slides/{name}.svs": b"x" for name in names[start : start + WRITTEN_AT_A_TIME]})
    rows = [
        f"{name},slides/{name}.svs,{('normal', 'tumour')[k % 2]},p{k // 2:06d},site{k % 20},0.25"
        for k, name in enumerate(names)
    ]
    storage.write_bytes(manifest, "\n".join(["slide_id,uri,label,patient_id,site,mpp", *rows, ""]).encode())
    return manifest


def measure(manifest: str, store: str) -> Row:
    """Seconds and memory of a plan, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.plan", "--plan", manifest, store]
    row: Row = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout.splitlines()[-1])
    return row


def plan(manifest: str, store: str) -> Row:
    """Seconds and memory of a plan in this process."""
    wall, cpu = time.perf_counter(), time.process_time()
    api.plan_ingestion(manifest, store, None, PARTITIONS)
    return {
        "wall_s": time.perf_counter() - wall,
        "cpu_s": time.process_time() - cpu,
        "peak_mb": resident_mb("VmHWM"),
    }


if __name__ == "__main__":
    main()
