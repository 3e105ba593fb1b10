"""Limits of a fan-out in Kubeflow Pipelines and on Ray, with simulated steps.

``python -m benchmarks.fan_out [--partitions N …] [--slides N …] [--counts] [--ray] [--json]``

A pipeline of three steps as ours are (plan, a step for each partition, a step after the fan-in), which compute nothing:
a partition's step returns the outcome of its slides, ids of 12 characters and counts, or counts alone. The pipeline is
compiled twice: over the list that the planning step returns, as ours, and over a list written into it. It is run by
kfp's local runner, a process for each step. With ``--ray`` slides are dealt to two workers of a local Ray as ``milcore
ingest --ray-address`` deals them, a task for each, which computes nothing.
"""

import argparse
import contextlib
import io
import json
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

from kfp import compiler, dsl, local

from benchmarks.memory import resident_mb
from milcore.config import LaunchConfig

IMAGE = "python:3.11"
Row = dict[str, Any]


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def plan(partitions: int) -> list[str]:
    """Partitions as i/n."""
    return [f"{index}/{partitions}" for index in range(partitions)]


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def ingest(partition: str, slides: int, with_ids: bool) -> str:
    """Outcome of the slides of a partition."""
    import json  # noqa: PLC0415 - only a component's source travels

    index, count = map(int, partition.split("/"))
    ok = [f"slide-{slide:06d}" for slide in range(index, slides, count)]
    return json.dumps({"ok": ok if with_ids else [], "slides": len(ok), "patches": 5000 * len(ok), "skipped": 0})


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def gather(outcomes: list[str]) -> int:
    """Number of slides in all outcomes."""
    import json  # noqa: PLC0415 - only a component's source travels

    return sum(json.loads(outcome)["slides"] for outcome in outcomes)


@dsl.pipeline
def fan_out(partitions: int, slides: int, with_ids: bool) -> int:
    """Fan-out over the list that the planning step returns."""
    planned = plan(partitions=partitions)
    with dsl.ParallelFor(planned.output, parallelism=50) as partition:
        part = ingest(partition=partition, slides=slides, with_ids=with_ids)
    return gather(outcomes=dsl.Collected(part.output)).output


def written_out(partitions: int) -> Any:
    """The same pipeline with the partitions written into it."""
    items = [f"{index}/{partitions}" for index in range(partitions)]

    @dsl.pipeline
    def fan_out_of_items(slides: int, with_ids: bool) -> int:
        """Fan-out over a list of the pipeline itself."""
        with dsl.ParallelFor(items, parallelism=50) as partition:
            part = ingest(partition=partition, slides=slides, with_ids=with_ids)
        return gather(outcomes=dsl.Collected(part.output)).output

    return fan_out_of_items


def compiled(partitions: int) -> Row:
    """Seconds to compile both pipelines, and bytes of their YAML."""
    row: Row = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, pipeline in (("planned", fan_out), ("items", written_out(partitions))):
            begun, path = time.perf_counter(), Path(folder, f"{name}.yaml")
            compiler.Compiler().compile(pipeline, str(path))
            row |= {f"{name}_compile_s": time.perf_counter() - begun, f"{name}_yaml_bytes": path.stat().st_size}
    return row


def run(partitions: int, slides: int, *, with_ids: bool) -> Row:
    """One run by the local runner; an error's first line where it fails."""
    with tempfile.TemporaryDirectory() as folder:
        local.init(local.SubprocessRunner(use_venv=False), pipeline_root=folder)
        begun, error, counted = time.perf_counter(), "", None
        with contextlib.redirect_stdout(io.StringIO()):  # the runner logs every step
            try:
                counted = fan_out(partitions=partitions, slides=slides, with_ids=with_ids).output
            except (RuntimeError, OSError, ValueError) as failure:
                error = str(failure).splitlines()[0]
        return {
            "partitions": partitions,
            "slides": slides,
            "run_s": time.perf_counter() - begun,
            "counted": counted,
            "error": error,
            "files": sum(path.is_file() for path in Path(folder).rglob("*")),
        }


def dealt(slides: int) -> Row:
    """Seconds and memory of this process to deal as many slides to two Ray workers."""
    from milcore.cluster.workers.connect import connected  # noqa: PLC0415 - Ray is imported where it is asked for
    from milcore.cluster.workers.map import map_on_ray  # noqa: PLC0415

    launch = LaunchConfig(workers=2)
    with connected(launch):
        before, begun = resident_mb("VmHWM"), time.perf_counter()
        counted = sum(1 for _ in map_on_ray(float, range(slides), launch=launch))
        taken = time.perf_counter() - begun
    return {"slides": slides, "run_s": taken, "counted": counted, "grown_mb": resident_mb("VmHWM") - before}


def table(rows: list[Row]) -> str:
    """Rows as Markdown."""
    head = (
        "| partitions | slides | YAML, list planned / written, B | compile, s | run, s | result |\n"
        "|---:|---:|---|---|---:|---|"
    )
    line = (
        "| {partitions:,} | {slides:,} | {planned_yaml_bytes:,} / {items_yaml_bytes:,} "
        "| {planned_compile_s:.2f} / {items_compile_s:.2f} | {run_s:.1f} | {result} |"
    )
    return "\n".join([head, *(line.format(**row, result=row["error"] or f"{row['counted']:,} slides") for row in rows)])


def main() -> None:
    """Print a row per number of partitions and of slides."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--partitions", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--slides", type=int, nargs="+", default=[1000, 100_000])
    parser.add_argument("--counts", action="store_true", help="outcomes without the slides' ids")
    parser.add_argument("--json", action="store_true", help="print a list of rows instead of a table")
    parser.add_argument("--ray", action="store_true", help="deal the slides to Ray in place of partitions")
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    if given.ray:
        print(json.dumps([dealt(slides) for slides in given.slides]))
        return
    rows = [
        {**compiled(partitions), **run(partitions, slides, with_ids=not given.counts)}
        for partitions in given.partitions
        for slides in given.slides
    ]
    sys.stdout.write(f"{json.dumps(rows) if given.json else table(rows)}\n")  # the runner leaves its own print behind


if __name__ == "__main__":
    main()
