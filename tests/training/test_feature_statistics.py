"""Statistics of features: of all training bags, or of a sample of them."""

from collections import Counter

import torch

from milcore.config import TrainConfig
from milcore.mil.bags.bags import BagEntry, Bags
from milcore.mil.bags.rows import BlockRows
from milcore.training.context import LocalContext
from milcore.training.feature_statistics import MOST_BAGS, bag_sample, feature_statistics
from milcore.training.loop import train_model

CONTEXT = LocalContext(None, torch.device("cpu"))
CONFIG = TrainConfig(hidden=4, attention_hidden=2, batch_size=4, patience=99)


def bags_of(count: int, cache_bytes: int, read: list[str]) -> Bags:
    """Bags of one to three instances of two features, in one block each, whose reads are noted; 1 in 5 is for val."""
    values = torch.randn(3 * count, 2, generator=torch.Generator().manual_seed(0))

    def open_rows(entry: BagEntry) -> BlockRows:
        def read_rows(start: int, stop: int) -> torch.Tensor:
            read.append(entry.bag_id)
            first = 3 * int(entry.bag_id)
            return values[first + start : first + stop]

        return BlockRows(read_rows, entry.length, 3)

    entries = [
        BagEntry.of_slide(str(k), str(k), k % 2, "val" if k % 5 == 4 else "train", 1 + k % 3) for k in range(count)
    ]
    return Bags(entries, open_rows, cache_bytes)


def test_statistics_are_those_of_all_training_bags() -> None:
    bags = bags_of(20, 1 << 20, [])
    rows = torch.cat([bags[index].instances[:] for index in bags.split("train")]).double()
    mean, std = feature_statistics(bags, CONTEXT, seed=0)
    torch.testing.assert_close(mean, rows.mean(0))
    torch.testing.assert_close(std, rows.std(0, unbiased=False))


def test_of_many_training_bags_a_sample_is_read() -> None:
    read: list[str] = []
    bags = bags_of(3000, 1 << 20, read)
    sample = bag_sample(bags.split("train"), 3)
    rows = torch.cat([bags[index].instances[:] for index in sample]).double()
    read.clear()
    mean, std = feature_statistics(bags_of(3000, 1 << 20, read), CONTEXT, seed=3)
    torch.testing.assert_close(mean, rows.mean(0))
    torch.testing.assert_close(std, rows.std(0, unbiased=False))
    assert set(read) - {"0"} == {str(index) for index in sample} - {"0"}
    assert len(read) <= MOST_BAGS + 3, "the first bag is read for its width, too"


def test_a_sample_depends_on_its_seed_and_keeps_the_order() -> None:
    indices = list(range(0, 9000, 3))
    first, again, other = (bag_sample(indices, seed) for seed in (1, 1, 2))
    assert first == again == sorted(set(first))
    assert set(first) < set(indices)
    assert len(first) == MOST_BAGS
    assert first != other
    assert bag_sample(indices[:MOST_BAGS], 1) == indices[:MOST_BAGS]


def test_features_that_the_cache_holds_are_read_once() -> None:
    read: list[str] = []
    train_model(CONFIG.model_copy(update={"epochs": 2}), bags_of(20, 1 << 20, read), CONTEXT)
    assert sorted(map(int, read)) == sorted([0, *range(20)]), "the first once more, to learn how large an instance is"


def test_without_a_cache_every_bag_is_read_once_an_epoch_at_most() -> None:
    """Bags that the end of an epoch and the beginning of the next have in work are read once for both."""
    reads = []
    for epochs in (1, 2):
        read: list[str] = []
        train_model(CONFIG.model_copy(update={"epochs": epochs}), bags_of(20, 8, read), CONTEXT)
        reads.append(read)
    again = Counter(reads[1])
    again.subtract(reads[0])
    assert set(again.values()) == {0, 1}
    assert sum(again.values()) > 20 / 2
