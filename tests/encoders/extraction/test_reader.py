"""Prefetching reads slides in order, across slides, and only so far ahead."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import torch

from milcore.encoders.extraction.encode import load_encoder
from milcore.encoders.extraction.reader import Arrival, Reader, run_ahead
from milcore.encoders.extraction.request import EncodedSlide
from tests.cohorts import write_store


def test_results_come_in_order_and_so_many_are_under_way_behind_the_one_waited_for() -> None:
    begun: list[int] = []
    gate = threading.Event()

    def work(number: int) -> int:
        begun.append(number)
        gate.wait(10)
        return number

    with ThreadPoolExecutor(8) as pool:
        results = run_ahead((partial(work, number) for number in range(6)), pool, 3)
        threading.Timer(0.2, gate.set).start()
        assert next(results) == 0
        assert sorted(begun) == [0, 1, 2, 3]
        assert list(results) == [1, 2, 3, 4, 5]


def test_that_nothing_further_is_known_is_handed_on_once_nothing_is_under_way() -> None:
    numbers = [1, 2, None, None, 3]
    with ThreadPoolExecutor(1) as pool:
        tasks = (None if number is None else partial(abs, number) for number in numbers)
        assert list(run_ahead(tasks, pool, 8)) == [1, 2, None, None, 3]


def test_patches_of_slides_arrive_in_order_across_slides(tmp_path: Path) -> None:
    """Slides of 10 patches are two runs each, of 8 and 2; while the first is waited for the third slide is opened."""
    store = write_store(str(tmp_path), slides=3, patches=10)
    encoder = load_encoder("efficientnet_lite0", "cpu")
    asked: list[str] = []

    def slide_ids() -> Iterator[str]:
        for slide_id in store.slide_ids():
            asked.append(slide_id)
            yield slide_id

    with Reader(store.slide, encoder, "f") as reader:
        arrivals = reader.read(slide_ids())
        first = next(arrivals)
        assert asked == ["s00", "s01", "s02"]
        results = [result for result in (first, *arrivals) if isinstance(result, Arrival)]
    ranges = [(patches.slide.slide.slide_id, patches.start, patches.length) for patches, _ in results]
    assert ranges == [(f"s0{k}", start, length) for k in range(3) for start, length in ((0, 8), (8, 2))]
    assert torch.equal(results[3].pixels, torch.from_numpy(store.slide("s01").patches(8, 10)))


def test_a_slide_that_cannot_be_read_is_reported_once_and_the_next_goes_on(tmp_path: Path) -> None:
    store = write_store(str(tmp_path), slides=2, patches=80)
    shard = next(path for path in Path(store.group_uri("s00"), "patches", "c").rglob("*") if path.is_file())
    shard.write_bytes(shard.read_bytes()[:-1] + b"?")
    with Reader(store.slide, load_encoder("efficientnet_lite0", "cpu"), "f") as reader:
        results = list(reader.read(["nowhere", *store.slide_ids()]))
    ended = [result for result in results if isinstance(result, EncodedSlide)]
    assert [slide.slide_id for slide in ended] == ["nowhere", "s00"]
    assert "absent" in str(ended[0].reason)
    assert "slide 's00': patches: " in str(ended[1].reason)
    assert "crc32c differs" in str(ended[1].reason)
    read = [result.patch_range.slide.slide.slide_id for result in results if isinstance(result, Arrival)]
    assert read == 10 * ["s01"]
