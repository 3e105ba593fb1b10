"""Damaged copies of slides, each ingested in a bounded child process; run as a program it is that child.

The child works through its mutants one after another and prints the name of each before it begins it, then how it
ended: so whoever watches knows which one crashed it, hung it or took too much memory.
"""

import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from milcore.cohort.manifest import Slide
from milcore.config import IngestConfig
from milcore.ingestion.slide import ingest_slide
from milcore.store.store import PatchStore

MEMORY_MB = 3000
SECONDS_EACH = 60.0
HEADER_BYTES = 2048


class Ended(NamedTuple):
    """How one mutant ended; ``status`` is None where it took the child with it."""

    name: str
    status: str | None
    reason: str | None


def mutate(data: bytes, generator: random.Random) -> bytes:
    """Damage of one kind: bytes or words changed at the head, the end or anywhere; a piece cut, zeroed or doubled."""
    mutant = bytearray(data)
    kind = generator.choice(["head", "tail", "tail", "anywhere", "word", "word", "cut", "zero", "double"])
    if kind in {"cut", "zero", "double"}:
        start = generator.randrange(len(data))
        stop = min(len(data), start + generator.choice([1, 16, 512, 65_536]))
        piece = {"cut": b"", "zero": bytes(stop - start), "double": data[start:stop] * 2}[kind]
        return bytes(mutant[:start]) + piece + data[stop:] if generator.random() < 0.8 else data[: max(1, start)]
    low, high = {"head": (0, HEADER_BYTES), "tail": (-HEADER_BYTES, 0)}.get(kind, (0, len(data)))
    low, high = (low + len(data), len(data)) if low < 0 else (low, min(high, len(data)))
    for _ in range(generator.choice([1, 2, 8, 64])):
        at = generator.randrange(max(0, low), high)
        if kind == "word":
            extreme = generator.choice([0, 1, 0x7FFFFFFF, 0xFFFFFFFF, 0xFFFF, len(data)])
            mutant[at : at + 4] = extreme.to_bytes(4, "little")
        else:
            mutant[at] = generator.randrange(256)
    return bytes(mutant)


def ingest_mutants(sources: list[Path], seeds: list[int]) -> Iterator[Ended]:
    """Ingest a mutant of a source for every seed, in children that are replaced when one of them dies.

    Raises:
        TimeoutError: a mutant took longer than ``SECONDS_EACH``; it says which.
    """
    left = list(seeds)
    while left:
        begun: str | None = None
        for line in _child(sources, left):
            if line["event"] == "begin":
                begun = line["name"]
            else:
                begun = None
                left.pop(0)
                yield Ended(line["name"], line["status"], line["reason"])
        if begun is not None:
            left.pop(0)
            yield Ended(begun, None, "the child died")


def _child(sources: list[Path], seeds: list[int]) -> Iterator[dict[str, str]]:
    """The lines a child prints; killed when it is silent for too long, which ends them."""
    command = [
        sys.executable,
        "-m",
        "tests.ingestion.mutants",
        json.dumps([str(source) for source in sources]),
        json.dumps(seeds),
    ]
    root = Path(__file__).resolve().parents[2]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=root) as child:
        assert child.stdout is not None
        while True:
            watchdog = threading.Timer(SECONDS_EACH, child.kill)
            watchdog.start()
            line = child.stdout.readline()
            watchdog.cancel()
            if not line:
                return
            yield json.loads(line)


def main() -> None:
    """Ingest the mutants of some sources with bounded memory, a line before and after each."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_MB * 10**6, MEMORY_MB * 10**6))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sources = [Path(name) for name in json.loads(sys.argv[1])]
    contents = {path: path.read_bytes() for path in sources}
    with tempfile.TemporaryDirectory() as folder:
        for seed in json.loads(sys.argv[2]):
            path = sources[seed % len(sources)]
            name = f"{path.name}#{seed}"
            mutant = Path(folder, f"m{path.suffix}")
            mutant.write_bytes(mutate(contents[path], random.Random(seed)))  # noqa: S311 - damage, not a secret
            _say({"event": "begin", "name": name})
            codec = ("passthrough", "jpeg")[seed // len(sources) % 2]
            config = IngestConfig(patch_size=256 if "pyramid" in name else 240, codec=codec, default_mpp=0.5)
            slide = Slide(f"s{seed % 2}", str(mutant), 0, "p", "", None, None, None)
            outcome = ingest_slide(slide, PatchStore(os.path.join(folder, "store")), config)  # noqa: PTH118 - a URI
            _say({"event": "end", "name": name, "status": outcome.status, "reason": outcome.reason})


def _say(line: dict[str, str | None]) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
