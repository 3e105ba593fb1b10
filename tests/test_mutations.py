"""A byte that is lost, changed or exchanged gives the right answer or an error that names its object, never another.

Commands run on a cohort of six slides of 20 patches; each draw damages one object that the command reads.
"""

import sys
from collections.abc import Iterator

import pytest

from tests.mutations import COMMANDS, HANDLED, Mutation, Mutations, Outcome, outcomes, table, write_cohort

MUTATIONS, MUTATIONS_LONG = 60, 1000
PER_SHARD, PER_CHUNK = 8, 8

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def mutations(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mutations]:
    """Three shards of patches a slide, and three chunks of features."""
    with pytest.MonkeyPatch.context() as sizes:
        sizes.setattr("milcore.store.shards.SHARD_MB", PER_SHARD * 32 * 32 * 3 / 5 / 1e6 + 1e-6)
        sizes.setattr("milcore.store.features.FEATURE_CHUNK_MB", PER_CHUNK * 1280 * 2 / 1e6 + 1e-6)
        # another process would not have these sizes, nor its lines be seen
        sizes.setattr("milcore.ingestion.cohort.map_in_processes", lambda function, items, *_: map(function, items))
        folder = tmp_path_factory.mktemp("cohort")
        write_cohort(folder)
        yield Mutations(folder, COMMANDS)


def _check(mutations: Mutations, count: int, seed: int) -> list[tuple[Mutation, Outcome]]:
    ended = list(outcomes(mutations, count, seed))
    assert [(mutation, outcome) for mutation, outcome in ended if outcome.kind not in HANDLED] == []
    assert {"right", "error"} <= {outcome.kind for _, outcome in ended}
    return ended


def test_a_command_repeated_without_damage_gives_the_same(mutations: Mutations) -> None:
    assert mutations.repeated() == {}


def test_every_command_reads_objects(mutations: Mutations) -> None:
    """Figures of a store are two: its manifest and its catalogue."""
    assert all(len(of_command.reads) > 1 for of_command in mutations.undisturbed.values())


def test_no_damage_is_silent(mutations: Mutations) -> None:
    _check(mutations, MUTATIONS, seed=0)


@pytest.mark.long
def test_no_damage_of_a_thousand_is_silent(mutations: Mutations, capsys: pytest.CaptureFixture[str]) -> None:
    """Shows how many ended right, with an error, or with a line: the table of outcomes."""
    ended = _check(mutations, MUTATIONS_LONG, seed=1)
    with capsys.disabled():
        sys.stdout.write(f"\n{table(ended)}\n")
