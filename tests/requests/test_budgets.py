"""Requests of every command: how many at all, how many more with each slide, and how many at once.

A slide of the cohort is imported from a file of features, or ingested from a TIFF of 20 patches in one shard.
"""

from collections import Counter
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import pytest

from milcore.ingestion.overview import MOST_PICTURES
from tests.proxy import Request
from tests.requests.commands import FEW_PICTURES
from tests.requests.conftest import HELD, SLIDES, Counted

# requests that depend on time, not on slides: a lease is renewed, an epoch writes its progress
BY_TIME = 4
TRAIN, TEST = 0.67, 0.34  # shares of slides: trained or validated on, tested on
AT_ONCE = 6
NOTHING: Mapping[str, float] = MappingProxyType({})


class Budget(NamedTuple):
    """Most requests of a command.

    Args:
        fixed: with no slide.
        store: with each slide of the cohort to its store, by kind.
        run: likewise to a run or predictions.
        files: likewise to the slides' own files.
        most_slides: with more of them they grow no further; None: without end.
    """

    fixed: int
    store: Mapping[str, float] = NOTHING
    run: Mapping[str, float] = NOTHING
    files: Mapping[str, float] = NOTHING
    most_slides: int | None = None


# every form of attention of a slide: four files and a Zarr group of 7 arrays at most
ATTENTION = 20
BUDGETS = {
    "open": Budget(10),
    "info": Budget(10),
    "info of a run": Budget(15),
    "import with pictures": Budget(60, store={"PUT": 10}, files={"HEAD": 7, "GET": 6}),
    # the record of each slide, and that its features are there: another program may have changed either
    "import with pictures again": Budget(60, store={"GET": 2}),
    "import": Budget(60, store={"PUT": 8}, files={"HEAD": 3, "GET": 2}),
    "import again": Budget(60, store={"GET": 2}),
    "train, 1 epoch": Budget(100, store={"GET": TRAIN}),
    "train, 2 epochs": Budget(100, store={"GET": TRAIN}),
    # training slides once for the statistics of the features too
    "train, 1 epoch, no cache": Budget(100, store={"GET": TRAIN + 0.5}),
    "train, 2 epochs, no cache": Budget(100, store={"GET": 2 * TRAIN + 0.5}),
    "evaluate, no baselines": Budget(60, store={"GET": 1.4}, run={"PUT": 18 * TEST}),
    "evaluate": Budget(60, store={"GET": 1.4}, run={"PUT": 18 * TEST}),
    "plan": Budget(20),
    "survey before": Budget(20),
    "ingest": Budget(60, store={"PUT": 13}, files={"HEAD": 6, "GET": 2}),
    # a picture and its tissue
    "gather": Budget(40, store={"GET": 2}, most_slides=MOST_PICTURES),
    "gather, of more slides than it pictures": Budget(40 + 2 * FEW_PICTURES),
    "survey": Budget(20),
    "ingest again": Budget(60, store={"GET": 1}),
    "encode": Budget(60, store={"PUT": 3, "GET": 10}),
    "encode again": Budget(60, store={"GET": 2}),
    "train on encoded": Budget(100, store={"GET": TRAIN}),
    "evaluate on encoded": Budget(60, store={"GET": 3.4}, run={"PUT": ATTENTION * TEST}),
    "predict": Budget(60, run={"PUT": ATTENTION + 1}, files={"HEAD": 7, "GET": 3}),
    "predict again": Budget(60, run={"GET": 1}),
    # features alone: the catalogue opens the slides, and a part is one object
    "predict a store": Budget(80, store={"GET": 1}),
    "predict a store again": Budget(80),
}


def place_of(request: Request) -> str:
    """What a request is to: store, run or files."""
    folder = request.key.split("/")[2]
    return "files" if folder == "files" else "run" if folder.startswith(("run", "predictions")) else "store"


def keys_of(counted: Counted, command: str, kind: str) -> list[str]:
    return [request.key for request in counted[command][SLIDES[1]].requests if request.kind == kind]


@pytest.mark.slow
@pytest.mark.parametrize("command", BUDGETS)
def test_requests_grow_with_slides_within_the_budget(counted: Counted, command: str) -> None:
    budget = BUDGETS[command]
    fewer, more = (
        Counter((place_of(request), request.kind) for request in counted[command][slides].requests) for slides in SLIDES
    )
    for place, kind in more:
        grown = more[place, kind] - fewer[place, kind]
        allowed = getattr(budget, place).get(kind, 0)
        assert grown <= allowed * (SLIDES[1] - SLIDES[0]) + BY_TIME, (place, kind, keys_of(counted, command, kind))
    with_slides = SLIDES[0] * sum(sum(getattr(budget, place).values()) for place in ("store", "run", "files"))
    assert fewer.total() <= budget.fixed + with_slides


@pytest.mark.slow
@pytest.mark.parametrize("command", HELD)
def test_requests_of_slides_go_together(counted: Counted, command: str) -> None:
    assert counted[command][SLIDES[1]].most_at_once >= AT_ONCE


@pytest.mark.slow
def test_every_command_has_a_budget(counted: Counted) -> None:
    assert counted.keys() == BUDGETS.keys()
