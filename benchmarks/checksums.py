"""Share of an epoch and of an encode that goes into comparing checksums.

``python -m benchmarks.checksums [--rounds N]``, some minutes

*epoch*: four batches of 4 bags of 10,000 features (1024) f2, read anew from the store in every epoch (a cache of
nothing), gated attention. *encode*: 512 JPEG patches of 256 px through EfficientNet-Lite0. *read, features* and *read,
patches* are the same chunks read (and decoded) and dropped, the worst case.

Each call of ``Checksums.check`` is timed by the processor seconds of its thread; their sum is divided by the processor
seconds of the whole work over all threads, which neighbours on the machine disturb little. Median over the rounds after
the first.
"""

import argparse
import functools
import itertools
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

from benchmarks import encode, epoch
from benchmarks.encode import timed
from benchmarks.pooling import ATTENTION, HIDDEN
from milcore.config import TrainConfig
from milcore.runtime.malloc import keep_freed_memory
from milcore.store.checksums import Checksums, UInt8
from milcore.store.store import PatchStore

BAGS, INSTANCES, SLIDES, PATCHES_PER_READ = 16, 10_000, 16, 64


def share(work: Callable[[], object]) -> tuple[float, float]:
    """Processor seconds of the work, and the share of them in ``Checksums.check``."""
    check, seconds, lock = Checksums.check, [0.0], threading.Lock()

    def check_timed(checksums: Checksums, chunk: int, data: UInt8, uri: str) -> UInt8:
        start = time.thread_time()
        try:
            return check(checksums, chunk, data, uri)
        finally:
            with lock:
                seconds[0] += time.thread_time() - start

    with mock.patch.object(Checksums, "check", check_timed):
        whole = timed(work).processors
    return whole, seconds[0] / whole


def read_features(uri: str) -> None:
    """Read the features of every slide and drop them."""
    for k in range(BAGS):
        PatchStore(uri).slide(f"s{k}").features("f").read(0, INSTANCES)


def read_patches(store: PatchStore) -> None:
    """Read and decode the patches of every slide and drop them."""
    for slide_id in store.slide_ids():
        slide = store.slide(slide_id)
        for start in range(0, len(slide), PATCHES_PER_READ):
            slide.patches(start, start + PATCHES_PER_READ)


def works(folder: Path) -> Iterator[tuple[str, Callable[[], object]]]:
    """Each work that is timed, by its name."""
    uri = str(folder / "features")
    splits = epoch.write_store(uri, [INSTANCES] * BAGS)
    config = TrainConfig(
        features="f",
        hidden=HIDDEN,
        attention_hidden=ATTENTION,
        epochs=2,
        patience=2,
        batch_size=BAGS // epoch.BATCHES,
        cache_mb=0.001,
    )
    yield "epoch", functools.partial(epoch.epoch_seconds, uri, splits, config)
    yield "read, features", functools.partial(read_features, uri)
    store, numbers = encode.write_store(str(folder / "patches"), SLIDES), itertools.count()
    yield "encode", lambda: encode.run_encode(store, "efficientnet_lite0", f"round-{next(numbers)}")
    yield "read, patches", functools.partial(read_patches, store)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="counted rounds (default: 5)")
    given = parser.parse_args()
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        for name, work in works(Path(folder)):
            seconds, shares = zip(*[share(work) for _ in range(given.rounds + 1)][1:], strict=True)
            print(
                f"{name}: {statistics.median(seconds):.2f} processor seconds, {statistics.median(shares):.2%} of them "
                f"in checksums ({min(shares):.2%} to {max(shares):.2%})",
                flush=True,
            )


if __name__ == "__main__":
    main()
