"""A finished run with its models' predictions for every bag."""

from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from jaxtyping import Float, Int

from milcore.cohort.label_changes import changes_text
from milcore.cohort.manifest import Manifest
from milcore.cohort.splits import splits_digest, splits_with_labels
from milcore.cohort.targets import COHORT_TARGETS
from milcore.config import EncoderRecord, LabelSource, RunSpec, label_source
from milcore.errors import StoreError
from milcore.mil.bags.bags import BagEntry, Bags, follow_up_arrays
from milcore.mil.bags.load import load_bags
from milcore.mil.inference import BagPrediction, mean_constants, predict_bags
from milcore.mil.model import MILModel
from milcore.store.catalogue import Catalogue
from milcore.store.store import PatchStore
from milcore.training.history import with_fold
from milcore.training.instances import read_instances
from milcore.training.run_folder import Run

ALL_FOLDS = -1


class SplitPredictions(NamedTuple):
    """Bags of one split, their labels and predicted probabilities.

    Of survival the first column is the risk; of hazards survival at the cut points follows. Of regression the only one
    is the value.
    """

    entries: list[BagEntry]
    labels: Int[np.ndarray, " bag"]
    probability: Float[np.ndarray, "bag class"]

    @property
    def follow_up(self) -> tuple[Float[np.ndarray, " bag"], Int[np.ndarray, " bag"]]:
        """Times and events of the bags, where survival is the target."""
        return follow_up_arrays(self.entries)

    @property
    def risk(self) -> Float[np.ndarray, " bag"]:
        """Risk of each bag, where survival is the target."""
        risk: np.ndarray = self.probability[:, 0]
        return risk

    @property
    def patients(self) -> list[str]:
        """The patient of each bag."""
        return [entry.patient_id for entry in self.entries]


class RunPredictions(NamedTuple):
    """A finished run, its bags and a prediction for each of them.

    Args:
        as_split: the bags in the run's own split. In a run of folds ``bags`` has none to train on, and simple models
            are fitted on these.
        catalogue: of the store, with the slides of the manifest and of the run.
        predictions: by the bag's index.
        folds: the fold whose validation split holds a bag, by the bag's index; empty for a plain run. Such a bag has
            the prediction of that fold's model alone, which was not trained on it; a test bag the mean of all models.
        labels_from: where labels and patients come from, as asked for; None where nothing was, and run and manifest
            agree.
        label_changes: what differs between them.
    """

    uri: str
    spec: RunSpec
    models: tuple[MILModel, ...]
    store: PatchStore
    catalogue: Catalogue
    bags: Bags
    as_split: Bags
    predictions: dict[int, BagPrediction]
    folds: dict[int, int]
    labels_from: LabelSource | None
    label_changes: tuple[str, ...]

    def split(self, split: str) -> SplitPredictions:
        """Bags and predictions of one split.

        In a run of folds ``val`` holds the validation bags of all folds.
        """
        indices = self.bags.split(split)
        entries = [self.bags.entries[index] for index in indices]
        labels = np.array([entry.label for entry in entries], dtype=np.int64)
        probability = np.array([self.predictions[index].probability for index in indices], dtype=np.float64)
        values = len(next(iter(self.predictions.values())).probability)
        return SplitPredictions(entries, labels, probability.reshape(len(entries), values))

    @property
    def cut_points(self) -> Float[np.ndarray, " time"]:
        """Times at which the models predict survival; empty where they do not."""
        times: np.ndarray = mean_constants(self.models).numpy()
        return times

    def fold(self, index: int) -> int:
        """Fold whose model predicted a bag.

        -1 (all folds) for a test bag of a run of folds, 0 in a plain run.
        """
        return self.folds.get(index, ALL_FOLDS) if self.spec.folds else 0

    def history(self) -> pa.Table:
        """Columns fold, epoch, split, metric, value of all folds."""
        members = Run(self.uri).members(self.spec.folds)
        histories = [member.history() for member in members]
        return pa.concat_tables(map(with_fold, histories, range(len(members))))


def open_run(
    run_uri: str, device: torch.device, labels_from: LabelSource | None = None, *, allow_program: bool = False
) -> RunPredictions:
    """Read a run, verify its store and splits, and predict all bags.

    Args:
        run_uri: a finished run.
        device: of the predictions.
        labels_from: labels and patients of the run, or of the store's manifest as it is now. None takes either, since
            they must be equal.
        allow_program: load an encoder that is a program (TorchScript) too.

    Raises:
        InputError: the run is not finished, its encoder is a program, or the manifest's labels are none of its classes.
        StoreError: the store, the labels or the splits are not those the run was trained on.
    """
    labels_from = label_source(labels_from)
    run = Run(run_uri)
    spec = run.spec()
    models, splits = run.models(allow_program=allow_program, spec=spec), run.splits()
    store = PatchStore(spec.store_uri)
    if splits_digest(splits) != spec.splits_digest:
        raise StoreError(
            f"{run_uri}: expected the splits it was trained with, got others; train again in another folder"
        )
    if not store.has_manifest():
        raise StoreError(
            f"{run_uri}: expected its store at {spec.store_uri}, got none; where one of them was moved, run "
            f"`milcore train STORE {run_uri}` with the options it was trained with: it names the store, training "
            "nothing anew"
        )
    manifest = store.manifest()
    changes = _label_changes(run_uri, spec, splits, manifest, labels_from)
    slide_ids = splits["slide_id"].to_pylist()
    instances = read_instances(store.catalogue(slide_ids), spec.train, slide_ids)
    if instances.digest != spec.instance_digest:
        raise StoreError(
            f"{spec.store_uri}: expected the instances that {run_uri} was trained on, got others; train again in "
            "another folder"
        )
    _check_encoder(spec, instances.origin.encoder)
    if labels_from == "manifest":
        splits = splits_with_labels(splits, spec.classes, manifest, spec.train)
    as_split = load_bags(spec.store_uri, spec.train, splits)
    folds = _folds(as_split, splits) if spec.folds else {}
    bags = as_split.with_splits(
        {entry.bag_id: "val" if k in folds else entry.split for k, entry in enumerate(as_split.entries)}
    )
    predictions = predict_bags(models, bags, range(len(bags)), device)
    predictions |= {index: predictions[index].of_member(fold) for index, fold in folds.items()}
    slide_ids = [slide.slide_id for slide in manifest.slides]
    catalogue = store.catalogue(list(dict.fromkeys([*slide_ids, *splits["slide_id"].to_pylist()])))
    return RunPredictions(
        run_uri, spec, models, store, catalogue, bags, as_split, predictions, folds, labels_from, changes
    )


def _label_changes(
    run_uri: str, spec: RunSpec, splits: pa.Table, manifest: Manifest, labels_from: LabelSource | None
) -> tuple[str, ...]:
    """Differences between the labels of a run and of the manifest.

    Raises:
        StoreError: there are some, and ``labels_from`` is None.
    """
    row, classes = COHORT_TARGETS[spec.train.target], dict(enumerate(spec.classes))
    changes = tuple(row.changes(splits.to_pylist(), classes, manifest, spec.train))
    if changes and labels_from is None:
        raise StoreError(
            f"{run_uri}: expected the manifest of {spec.store_uri} to have the {row.title} that the run was trained "
            f"on, got others ({changes_text(changes)}); allowed: --labels-from run, or --labels-from manifest; name "
            "one, or train again in another folder"
        )
    return changes


def _check_encoder(spec: RunSpec, encoder: EncoderRecord | None) -> None:
    """Check that the store's features are of the encoder that the run recorded.

    Raises:
        StoreError: it is another.
    """
    recorded = None if spec.origin is None else spec.origin.encoder
    differing = [] if recorded is None or encoder is None else recorded.differences(encoder)
    if differing:
        raise StoreError(
            f"features/{spec.train.features} of {spec.store_uri}: expected the {', '.join(differing)} that the run was "
            "trained on, got another; train again in another folder"
        )


def _folds(bags: Bags, splits: pa.Table) -> dict[int, int]:
    """Fold whose validation split holds each bag, for bags outside the test split."""
    rows = splits.filter(pc.not_equal(splits["split"], "test"))
    fold_of = dict(zip(rows["slide_id"].to_pylist(), rows["fold"].to_pylist(), strict=True))
    return {k: fold_of[entry.slides[0]] for k, entry in enumerate(bags.entries) if entry.slides[0] in fold_of}
