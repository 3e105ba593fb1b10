"""Protocol of one outer fold.

Settings are chosen and models trained on its training bags; its test bags are read once. The rule is one for every set.
Settings are fixed by the kind of instance, save those that have several candidates: each is trained without one inner
part of the training bags in turn, and the one of least mean log-loss on the parts is taken. Then the members of an
ensemble, which differ by seed, are trained on the training bags, to the last epoch of the schedule. With
``validation_parts`` member m leaves out part m and keeps its best epoch on it instead. A bag's probability and
attention are the members' means. It is called positive from 0.5 on, or, where inner parts were left out, from where
Platt scaling on the predictions of these gives even odds.

Beside it, fitted on the same training bags: logistic regression on the mean and standard deviation of a bag's features
(of its pixels' colours), and one member trained on shuffled labels.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from milcore.config import TrainConfig, parse_config
from milcore.evaluation.attention.localisation import localise
from milcore.evaluation.baselines import shuffle_outcomes
from milcore.mil.bags.bags import Bags
from milcore.mil.bags.load import load_bags
from milcore.mil.inference import BagPrediction, predict_bags
from milcore.runtime.malloc import keep_freed_memory
from milcore.store.store import PatchStore
from milcore.training.context import LocalContext
from milcore.training.loop import FitResult, train_model

CPU = torch.device("cpu")
THRESHOLD = 0.5
SMALLEST_PROBABILITY = 1e-6


class Fold(NamedTuple):
    """Training and test bags, by their slide ids in a store."""

    repeat: int
    number: int
    store_uri: str
    train: tuple[str, ...]
    test: tuple[str, ...]


@dataclass(frozen=True)
class Protocol:
    """Settings by which every fold of a row is computed.

    Args:
        config: of the model and its training.
        candidates: settings in place of the config's, among which each fold chooses; one means no choice.
        selection_parts: inner parts by which it chooses.
        members: models whose predictions are averaged.
        validation_parts: 0 trains every member on all training bags; else member m leaves out part m of so many.
        controls_until: repeats below this one also train on shuffled labels.
    """

    config: TrainConfig
    candidates: tuple[dict[str, Any], ...]
    selection_parts: int
    members: int
    validation_parts: int
    controls_until: int

    def with_candidates(self, factors: Sequence[float]) -> "Protocol":
        """Candidates times learning rates: the config's times each factor."""
        rates = [self.config.learning_rate * factor for factor in factors]
        return replace(
            self, candidates=tuple(settings | {"learning_rate": rate} for settings in self.candidates for rate in rates)
        )

    def with_settings(self, settings: dict[str, Any]) -> "Protocol":
        """The same without a choice, under these training settings."""
        return replace(self, config=_with(self.config, settings), candidates=({},))


class FoldResult(NamedTuple):
    """Predictions of a fold's test bags, as JSON takes them.

    ``attention`` is that of positive bags. ``left_out`` are probabilities of training bags by models that had not seen
    them, by which ``threshold`` is chosen; ``validation`` is the accuracy on bags left out of training inside the
    training bags, None where none were.
    """

    repeat: int
    number: int
    bags: list[str]
    labels: list[int]
    probability: list[float]
    colour: list[float]
    shuffled: list[float] | None
    localisation: dict[str, float]
    attention: dict[str, list[float]]
    chosen: dict[str, Any]
    left_out: dict[str, float]
    threshold: float
    validation: float | None
    epochs: list[int]
    select_s: float
    total_s: float


def run_fold(protocol: Protocol, fold: Fold) -> FoldResult:
    """Choose, train, and read the test bags once."""
    keep_freed_memory()
    bags = read_bags(fold, protocol.config)
    started = time.perf_counter()
    chosen = _choose(protocol, bags, fold)
    selected = time.perf_counter()
    config = _with(protocol.config, chosen.settings)
    trained = [_train_member(protocol, config, bags, fold, member) for member in range(protocol.members)]
    tested = bags.split("test")
    predictions = _mean([predict_bags((member.result.model,), member.bags, tested, CPU) for member in trained])
    accuracies = [member.accuracy for member in trained if member.accuracy is not None]
    attention = {
        bags.entries[index].bag_id: bag.attention for index, bag in predictions.items() if bags.entries[index].label
    }
    return FoldResult(
        fold.repeat,
        fold.number,
        [bags.entries[index].bag_id for index in tested],
        [bags.entries[index].label for index in tested],
        [_positive(predictions[index]) for index in tested],
        colour_control(bags),
        _shuffled(protocol, config, bags, fold),
        _localised(fold, attention),
        {name: weights.tolist() for name, weights in attention.items()},
        chosen.settings,
        chosen.left_out,
        chosen.threshold,
        float(np.mean(accuracies)) if accuracies else chosen.accuracy,
        [member.result.best_epoch + 1 for member in trained],
        selected - started,
        time.perf_counter() - started,
    )


def read_bags(fold: Fold, config: TrainConfig) -> Bags:
    """The bags of a fold as splits ``train`` and ``test``, in memory."""
    manifest = PatchStore(fold.store_uri).manifest()
    split_of = dict.fromkeys(fold.train, "train") | dict.fromkeys(fold.test, "test")
    rows = [
        {"slide_id": name, "patient_id": name, "label": manifest.slide(name).label, "split": split}
        for name, split in split_of.items()
    ]
    return load_bags(fold.store_uri, config, pa.Table.from_pylist(rows))


def inner_parts(bags: Bags, parts: int, seed: Sequence[int]) -> list[list[str]]:
    """The training bags cut into so many parts, stratified by label."""
    indices = bags.split("train")
    labels = [bags.entries[index].label for index in indices]
    random = np.random.default_rng(seed).integers(2**31)
    cut = StratifiedKFold(parts, shuffle=True, random_state=int(random)).split(indices, labels)
    return [[bags.entries[indices[place]].bag_id for place in places] for _, places in cut]


def holding_out(bags: Bags, bag_ids: Sequence[str], split: str) -> Bags:
    """The same bags with some training bags in another split."""
    return bags.with_splits({entry.bag_id: entry.split for entry in bags.entries} | dict.fromkeys(bag_ids, split))


def bag_statistics(instances: torch.Tensor) -> np.ndarray:
    """Mean and standard deviation of every feature or colour of a bag.

    Args:
        instances: (instance, feature), or (instance, y, x, channel).
    """
    flat = instances.reshape(-1, instances.shape[-1]).double()
    return torch.cat([flat.mean(dim=0), flat.std(dim=0, correction=0)]).numpy()


def colour_control(bags: Bags) -> list[float]:
    """Probabilities of the test bags by logistic regression on each bag's statistics."""
    rows = {index: bag_statistics(bags[index].instances[:]) for index in (*bags.split("train"), *bags.split("test"))}
    train = bags.split("train")
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    model.fit([rows[index] for index in train], [bags.entries[index].label for index in train])
    probability: np.ndarray = model.predict_proba([rows[index] for index in bags.split("test")])[:, 1]
    return probability.tolist()


def even_odds(labels: np.ndarray, probability: np.ndarray) -> float:
    """Probability whose odds are even by Platt scaling.

    The scaling is ``sigmoid(a logit p + b)``, fitted to the bags given.
    Targets are smoothed, so that bags which the probabilities divide without a fault have a scaling too. One half where
    the probabilities do not rise with the labels.

    Source: Platt 1999, section 2.2.
    """
    logits = logit(np.clip(probability, SMALLEST_PROBABILITY, 1.0 - SMALLEST_PROBABILITY))[:, None]
    positives = int(labels.sum())
    target = np.where(labels, (positives + 1) / (positives + 2), 1 / (len(labels) - positives + 2))
    scaling = LogisticRegression(C=np.inf).fit(
        np.concatenate([logits, logits]),
        np.repeat([1, 0], len(labels)),
        sample_weight=np.concatenate([target, 1.0 - target]),
    )
    slope, offset = float(scaling.coef_[0, 0]), float(scaling.intercept_[0])
    return float(expit(-offset / slope)) if slope > 0 else THRESHOLD


class _Member(NamedTuple):
    """A trained member, the bags as split for it, and its validation accuracy."""

    result: FitResult
    bags: Bags
    accuracy: float | None


def _train_member(protocol: Protocol, config: TrainConfig, bags: Bags, fold: Fold, member: int) -> _Member:
    config = _with(config, {"seed": 1000 * fold.repeat + member})
    if protocol.validation_parts == 0:
        return _Member(train_model(config, bags, LocalContext(None, CPU)), bags, None)
    parts = inner_parts(bags, protocol.validation_parts, (fold.repeat, fold.number))
    with_splits = holding_out(bags, parts[member % len(parts)], "val")
    result = train_model(config, with_splits, LocalContext(None, CPU))
    return _Member(
        result,
        with_splits,
        _accuracy(with_splits, predict_bags((result.model,), with_splits, with_splits.split("val"), CPU)),
    )


class _Choice(NamedTuple):
    """Chosen settings, with the predictions of left-out training bags.

    ``accuracy`` is that of these predictions at ``threshold``.
    """

    settings: dict[str, Any]
    left_out: dict[str, float]
    threshold: float
    accuracy: float | None


def _choose(protocol: Protocol, bags: Bags, fold: Fold) -> _Choice:
    """Candidate of least log-loss over the inner parts, and its threshold."""
    if len(protocol.candidates) == 1:
        return _Choice(protocol.candidates[0], {}, THRESHOLD, None)
    label_of = {bags.entries[index].bag_id: bags.entries[index].label for index in bags.split("train")}
    parts = inner_parts(bags, protocol.selection_parts, (fold.repeat, fold.number))
    predictions = []
    for candidate in protocol.candidates:
        config = _with(protocol.config, candidate)
        predictions.append(
            {name: probability for part in parts for name, probability in _left_out(config, bags, part).items()}
        )
    labels = np.array([label_of[name] for name in predictions[0]])
    losses = [log_loss(labels, list(candidate.values()), labels=[0, 1]) for candidate in predictions]
    best = int(np.argmin(losses))
    probability = np.array(list(predictions[best].values()))
    threshold = even_odds(labels, probability)
    accuracy = float(np.mean((probability >= threshold) == labels))
    return _Choice(protocol.candidates[best], predictions[best], threshold, accuracy)


def _left_out(config: TrainConfig, bags: Bags, part: Sequence[str]) -> dict[str, float]:
    """Probabilities of the bags of a part by a model trained without them."""
    with_splits = holding_out(bags, part, "held")
    model = train_model(config, with_splits, LocalContext(None, CPU)).model
    predictions = predict_bags((model,), with_splits, with_splits.split("held"), CPU)
    return {with_splits.entries[index].bag_id: _positive(bag) for index, bag in predictions.items()}


def _shuffled(protocol: Protocol, config: TrainConfig, bags: Bags, fold: Fold) -> list[float] | None:
    if fold.repeat >= protocol.controls_until:
        return None
    random = shuffle_outcomes(bags, 1000 * fold.repeat + fold.number)
    model = _train_member(protocol, config, random, fold, 0).result.model
    predictions = predict_bags((model,), random, random.split("test"), CPU)
    return [_positive(bag) for bag in predictions.values()]


def _localised(fold: Fold, attention: dict[str, np.ndarray]) -> dict[str, float]:
    """Within-bag AUROC of attention, of positive bags with both instance labels."""
    store = PatchStore(fold.store_uri)
    return localise({name: (weights, store.slide(name).instance_labels) for name, weights in attention.items()}).bags


def _mean(members: list[dict[int, BagPrediction]]) -> dict[int, BagPrediction]:
    return {
        index: BagPrediction(
            np.concatenate([member[index].members for member in members]),
            np.mean([member[index].attention for member in members], axis=0),
        )
        for index in members[0]
    }


def _positive(prediction: BagPrediction) -> float:
    return float(prediction.probability[1])


def _accuracy(bags: Bags, predictions: dict[int, BagPrediction]) -> float:
    hits = [(_positive(bag) >= THRESHOLD) == bags.entries[index].label for index, bag in predictions.items()]
    return float(np.mean(hits))


def _with(config: TrainConfig, settings: dict[str, Any]) -> TrainConfig:
    return parse_config(TrainConfig, config.model_dump() | settings)
