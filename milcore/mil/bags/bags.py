"""Data set of labelled bags with a cache and read-ahead.

A batch packs the instances of its bags into one run of rows beside their lengths; nothing is padded. It is computed on
in chunks of rows, so a bag too large for memory stays in the store and is read chunk by chunk.

Axes: instance, bag; the other axes of instances are (feature,) or (channel, height, width).
"""

import copy
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from milcore.cohort.survival import FollowUp
from milcore.config import TrainConfig
from milcore.errors import InputError
from milcore.mil.bags.arrays import (
    ArraysOfBags,
    ValuesOfBags,
    array_rows,
    bag_follow_ups,
    bag_id,
    bag_labels,
    bag_places,
    bag_values,
    by_key,
)
from milcore.mil.bags.batch import Bag, BagBatch
from milcore.mil.bags.read_ahead import BagCache, BagSource, ReadAhead
from milcore.mil.bags.rows import Rows
from milcore.mil.memory import cache_mb

# a bag above 1 / 4 of the cache is streamed, and bags of as many bytes together are read ahead
STREAMED_ABOVE_CACHE_FRACTION = 4
CLASSES_SHOWN = 10


class BagEntry(NamedTuple):
    """Metadata of a bag: the instances of its slides one after another.

    Args:
        bag_id: id of the slide or patient.
        patient_id: id of the patient.
        label: class index; 0 where another target than classification is meant.
        split: name of the split; empty for none.
        slides: ids of the slides.
        lengths: instances of each slide.
        follow_up: of the patient, where survival is the target.
        value: of the bag, where regression is the target.
    """

    bag_id: str
    patient_id: str
    label: int
    split: str
    slides: tuple[str, ...]
    lengths: tuple[int, ...]
    follow_up: FollowUp | None = None
    value: float | None = None

    @classmethod
    def of_slide(cls, slide_id: str, patient_id: str, label: int, split: str, length: int) -> "BagEntry":
        """Entry of a bag of one slide."""
        return cls(slide_id, patient_id, label, split, (slide_id,), (length,))

    @property
    def length(self) -> int:
        """Number of instances of all slides."""
        return sum(self.lengths)

    def by_slide(self, values: Shaped[np.ndarray, " instance"]) -> dict[str, np.ndarray]:
        """Split values of the instances by slide."""
        return dict(zip(self.slides, np.split(values, np.cumsum(self.lengths)[:-1]), strict=True))


def follow_up_arrays(
    entries: Sequence[BagEntry],
) -> tuple[Float[np.ndarray, " bag"], Int[np.ndarray, " bag"]]:
    """Times and events of bags, all of which have them."""
    known = [entry.follow_up for entry in entries if entry.follow_up is not None]
    return np.array([each.time for each in known], np.float64), np.array([each.event for each in known], np.int64)


def value_array(entries: Sequence[BagEntry]) -> Float[np.ndarray, " bag"]:
    """Values of bags, all of which have one."""
    return np.array([entry.value for entry in entries if entry.value is not None], np.float64)


class Bags:
    """Labelled bags, read on access and cached in memory.

    A bag larger than a quarter of the cache is not read as a whole: its instances are rows that read on slicing.

    Args:
        entries: one per bag.
        open_rows: opens the instances of a bag; called from several reading threads.
        cache_bytes: size of the cache in memory.
        class_names: of the labels; empty where only their numbers are known.
        open_places: reads the places of the instances of a bag, as of ``Bag``; by default there are none.
    """

    def __init__(
        self,
        entries: Sequence[BagEntry],
        open_rows: Callable[[BagEntry], Rows],
        cache_bytes: int,
        class_names: tuple[str, ...] = (),
        open_places: Callable[[BagEntry], Float[Tensor, "instance 3"] | None] = lambda _: None,
    ) -> None:
        self.entries = tuple(entries)
        self.lengths = tuple(entry.length for entry in entries)
        self._open_rows = open_rows
        self._cache = BagCache(cache_bytes)
        self.cache_bytes = cache_bytes
        self.class_names = class_names
        self._open_places = open_places

    @staticmethod
    def from_arrays(  # noqa: PLR0913 - one keyword per column of a manifest
        arrays: ArraysOfBags,
        labels: ValuesOfBags | None = None,
        *,
        patients: ValuesOfBags | None = None,
        splits: ValuesOfBags | None = None,
        times: ValuesOfBags | None = None,
        events: ValuesOfBags | None = None,
        places: ArraysOfBags | None = None,
        values: ValuesOfBags | None = None,
    ) -> "Bags":
        """Bags of features from anywhere: an array (n, d) and a label for each.

        For survival time and event stand in place of the label, for regression a value.

        An array is a NumPy array (a memory map too), a torch tensor of any device, or what ``numpy.asarray`` makes
        numbers of, such as a list of lists or an h5py data set. Every value is read once, to check that it is finite.
        float16 and float32 stay what they are and are not copied, so they must not change while the bags are used.
        Other numbers (float64, bfloat16, integers) become float32 where they are read. A memory map stays on disk: a
        bag above a quarter of the cache is read in chunks, smaller ones are kept as far as the cache reaches. Refused
        are an empty bag, NaN and infinity, objects, masks, booleans, complex numbers and sparse tensors.

        Args:
            arrays: a list of arrays, or arrays by the bags' ids: texts, or whole numbers as in ``bag-0003``. n may
                differ, d not.
            labels: whole numbers, or names of classes; their order is that of a manifest: numbers by value, names by
                the alphabet, and the second of two classes is positive (``class_names``). Of arrays by id, labels,
                patients and splits may be mappings or pandas Series by these ids too, and may have further ids, which
                are not read; of a list of arrays, a Series counts in its order.
            patients: of each bag; None: every bag is of another patient.
            splits: ``train``, ``val`` or ``test`` for each bag, one for all bags of a patient; None: all train.
            times: to the event or to censoring, above 0, in one unit, for a survival target.
            events: 1 where the event came at that time, 0 where censored, for a survival target.
            places: an array (n, 2) for each bag, x and y of its instances in um, for a pooling that reads them.
            values: finite numbers in any unit, for target regression.

        Raises:
            InputError: bags, by index or id, with what is wrong.
        """
        arrays = by_key("arrays", arrays)
        if isinstance(arrays, Mapping):
            labels, patients, splits = by_key("labels", labels), by_key("patients", patients), by_key("splits", splits)
            times, events = by_key("times", times), by_key("events", events)
            values = by_key("values", values)
        if labels is None and times is None and events is None and values is None:
            raise InputError(
                "labels: expected labels, times and events, or values, got none; allowed: one of each bag; give them"
            )
        rows = array_rows(arrays)
        table = bag_labels(list(rows), labels, patients, splits)
        follow_ups, numbers = bag_follow_ups(list(rows), times, events), bag_values(list(rows), values)
        entries = [
            BagEntry.of_slide(bag_id(key), patient, label, split, len(of_bag))._replace(
                follow_up=follow_up, value=value
            )
            for (key, of_bag), patient, label, split, follow_up, value in zip(
                rows.items(), table.patients, table.labels, table.splits, follow_ups, numbers, strict=True
            )
        ]
        rows_of_id = {bag_id(key): of_bag for key, of_bag in rows.items()}
        return Bags(
            entries,
            lambda entry: rows_of_id[entry.bag_id],
            cache_bytes(TrainConfig()),
            table.classes,
            _placing({} if places is None else bag_places(rows, by_key("places", places))),
        )

    def __len__(self) -> int:
        return len(self.entries)

    def __repr__(self) -> str:
        names = self.class_names
        classes = f"classes {', '.join(names)}" if len(names) <= CLASSES_SHOWN else f"{len(names)} classes"
        return f"Bags({len(self):,} bags, {sum(self.lengths):,} instances{f', {classes}' if names else ''})"

    def __getitem__(self, index: int) -> Bag:
        bag = self._cache.get(index)
        if bag is None:
            bag = self._read(index)
            self._keep(index, bag)
        return bag

    def __iter__(self) -> Iterator[Bag]:
        return (self[index] for index in range(len(self)))

    def instance(self) -> Tensor:
        """First instance of the first bag, first axis kept, as an example."""
        return self[0].instances[:1]

    @property
    def classes(self) -> int:
        """Number of classes of the labels, at least 2."""
        return max(2, len(self.class_names), 1 + max(entry.label for entry in self.entries))

    def split(self, name: str) -> list[int]:
        """Indices of the bags of one split."""
        return [index for index, entry in enumerate(self.entries) if entry.split == name]

    def with_splits(self, split_of: Mapping[str, str]) -> "Bags":
        """The same bags with the same cache under other splits.

        Args:
            split_of: the split of a bag by its id; a bag that is not named is in none.
        """
        other = copy.copy(self)
        other.entries = tuple(entry._replace(split=split_of.get(entry.bag_id, "")) for entry in self.entries)
        return other

    def with_cache(self, size_bytes: int) -> "Bags":
        """The same bags with a cache of their own, empty at first."""
        return Bags(self.entries, self._open_rows, size_bytes, self.class_names, self._open_places)

    def batches(self, groups: Iterable[Sequence[int]]) -> Generator[BagBatch]:
        """Batch of each group of indices, the next ones read ahead.

        What is read ahead takes at most a quarter of the cache, or is the next batch alone.
        """
        source = BagSource(self._cache.get, self._read, self._keep, self._size_in_memory)
        return ReadAhead(source, self._streamed_above).batches(groups)

    @cached_property
    def _instance_bytes(self) -> int:
        return self._open_rows(self.entries[0])[:1].nbytes

    @property
    def _streamed_above(self) -> int:
        return self.cache_bytes // STREAMED_ABOVE_CACHE_FRACTION

    def _size_in_memory(self, index: int) -> int:
        """Bytes of a bag that is read whole; 0 where it is streamed."""
        size = self.lengths[index] * self._instance_bytes
        return 0 if size > self._streamed_above else size

    def _read(self, index: int) -> Bag:
        entry = self.entries[index]
        rows = self._open_rows(entry)
        instances = rows[: entry.length] if self._size_in_memory(index) else rows
        return Bag(entry.bag_id, entry.patient_id, entry.label, instances, self._open_places(entry))

    def _keep(self, index: int, bag: Bag) -> None:
        if self._size_in_memory(index) and isinstance(bag.instances, Tensor):
            places = 0 if bag.places is None else bag.places.nbytes
            self._cache.keep(
                index, bag, places + bag.instances.nbytes
            )  # of float32 in one slide, of float16 in another


def _placing(
    places: Mapping[str, Float[Tensor, "instance 2"]],
) -> Callable[[BagEntry], Float[Tensor, "instance 3"] | None]:
    """Function from a bag of one slide to the places of its instances."""
    return lambda entry: slide_places(0, places[entry.bag_id]) if entry.bag_id in places else None


def slide_places(number: int, xy: Float[Tensor, "instance 2"]) -> Float[Tensor, "instance 3"]:
    """Places of the instances of a slide, as of ``Bag``.

    Args:
        number: of the slide in its bag.
        xy: of its instances.
    """
    return torch.cat([torch.full_like(xy[:, :1], number), xy.flip(1)], dim=1)


def cache_bytes(config: TrainConfig) -> int:
    """Bytes of one worker's cache of instances."""
    return int(cache_mb(config) * 1e6)


def check_bags(bags: object) -> None:
    """Check that an argument is ``Bags``.

    Raises:
        InputError: it is something else.
    """
    if not isinstance(bags, Bags):
        raise InputError(
            f"bags: expected Bags, got type {type(bags).__name__}; allowed: such as Bags.from_arrays(arrays, labels)"
        )
