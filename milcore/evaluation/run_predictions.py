"""A finished run, opened for evaluation: what its models say of every bag, and by which of them a bag may be judged."""

from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from jaxtyping import Float, Int

from milcore.cohort.splits import splits_digest
from milcore.config import RunSpec
from milcore.errors import StoreError
from milcore.mil.bags.bags import BagEntry, Bags
from milcore.mil.bags.load import load_bags
from milcore.mil.inference import BagPrediction, predict_bags
from milcore.mil.model import MILModel
from milcore.runtime import storage
from milcore.store.store import PatchStore
from milcore.training.run import instance_digest
from milcore.training.run_folder import HISTORY, load_models, model_folders, read_splits

ALL_FOLDS = -1


class SplitPredictions(NamedTuple):
    """The bags of a split, their labels and what the run says of them."""

    entries: list[BagEntry]
    labels: Int[np.ndarray, " bag"]
    probability: Float[np.ndarray, "bag class"]

    @property
    def patients(self) -> list[str]:
        """The patient of each bag."""
        return [entry.patient_id for entry in self.entries]


class RunPredictions(NamedTuple):
    """A finished run, its bags, and what its models say of every one of them.

    Args:
        as_split: the bags in the run's own split. In a run of folds ``bags`` has none to train on, and simple models
            are fitted on these.
        folds: the fold that was validated on a bag, by its index; empty for a plain run. Such a bag is judged by that
            fold's model alone, which never saw it; a test bag by all of them.
    """

    uri: str
    spec: RunSpec
    models: tuple[MILModel, ...]
    store: PatchStore
    bags: Bags
    as_split: Bags
    said: dict[int, BagPrediction]
    folds: dict[int, int]

    def split(self, split: str) -> SplitPredictions:
        """The bags of a split; in a run of folds ``val`` holds every bag that some fold was validated on."""
        indices = self.bags.split(split)
        entries = [self.bags.entries[index] for index in indices]
        labels = np.array([entry.label for entry in entries], dtype=np.int64)
        said = np.array([self.said[index].probability for index in indices], dtype=np.float64)
        return SplitPredictions(entries, labels, said.reshape(len(entries), len(self.spec.classes)))

    def fold(self, index: int) -> int:
        """The fold whose model judged a bag; -1 (all) for a test bag of a run of folds, 0 in a plain run."""
        return self.folds.get(index, ALL_FOLDS) if self.spec.folds else 0

    def history(self) -> pa.Table:
        """Columns fold, epoch, split, metric, value of all folds."""
        tables = []
        for fold, folder in enumerate(model_folders(self.uri, self.spec.folds)):
            table = storage.read_table(storage.join(folder, HISTORY))
            place = table.schema.get_field_index("fold")
            tables.append(table.set_column(place, "fold", pa.array([fold] * len(table), pa.int32())))
        return pa.concat_tables(tables)


def open_run(run_uri: str, device: torch.device) -> RunPredictions:
    """Read a run, make sure that it stands on what it was trained on, and run its models over all bags.

    Raises:
        InputError: the run is not finished.
        StoreError: the store or the splits are not those the run was trained on.
    """
    spec, models = load_models(run_uri)
    splits = read_splits(run_uri)
    store = PatchStore(spec.store_uri)
    if splits_digest(splits) != spec.splits_digest:
        raise StoreError(f"the splits of {run_uri} are not those it was trained with; train again in another folder")
    if instance_digest(store, spec.train, splits["slide_id"].to_pylist()) != spec.instance_digest:
        raise StoreError(
            f"the instances in {spec.store_uri} have changed since {run_uri} was trained; train again in another folder"
        )
    as_split = load_bags(spec.store_uri, spec.train, splits)
    folds = _folds(as_split, splits) if spec.folds else {}
    bags = as_split.with_splits(
        {its.bag_id: "val" if k in folds else its.split for k, its in enumerate(as_split.entries)}
    )
    said = predict_bags(models, bags, range(len(bags)), device)
    judged = {index: its.by(folds[index]) if index in folds else its for index, its in said.items()}
    return RunPredictions(run_uri, spec, models, store, bags, as_split, judged, folds)


def _folds(bags: Bags, splits: pa.Table) -> dict[int, int]:
    """The fold that was validated on each bag outside the test split."""
    held = splits.filter(pc.not_equal(splits["split"], "test"))
    fold_of = dict(zip(held["slide_id"].to_pylist(), held["fold"].to_pylist(), strict=True))
    return {k: fold_of[its.slides[0]] for k, its in enumerate(bags.entries) if its.slides[0] in fold_of}
