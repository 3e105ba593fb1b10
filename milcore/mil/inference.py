"""Bag predictions and instance attention of one or several models, without dropout.

Every evaluation is computed from these.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, SupportsIndex

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from milcore.errors import InputError
from milcore.mil.bags.bags import Bags, check_bags
from milcore.mil.bags.batch import Bag, BagBatch, pack
from milcore.mil.bags.dealing import micro_batches
from milcore.mil.instance_encoders.features import FeatureEncoder
from milcore.mil.leave_one_out import leave_one_out
from milcore.mil.model import MILModel
from milcore.mil.threads import torch_threads, useful_threads


class BagPrediction(NamedTuple):
    """Prediction of a run for one bag.

    Args:
        members: probability of every class, or with a survival target the risk and, of hazards, survival at the cut
            points, or the value of regression, by each model of the run, one row for a plain run.
        attention: share of each instance in the store's order, the mean over the models.
    """

    members: Float[np.ndarray, "member class"]
    attention: Float[np.ndarray, " instance"]

    @property
    def probability(self) -> Float[np.ndarray, " class"]:
        """Mean over the models."""
        mean: np.ndarray = self.members.mean(axis=0)
        return mean

    @property
    def std(self) -> Float[np.ndarray, " class"]:
        """Standard deviation over the models, 0 for one."""
        deviation: np.ndarray = self.members.std(axis=0)
        return deviation

    @property
    def likeliest(self) -> int:
        """Class of highest probability."""
        return int(self.probability.argmax())

    def of_member(self, member: int) -> "BagPrediction":
        """Prediction of one of the models, with the mean attention of all."""
        return BagPrediction(self.members[member : member + 1], self.attention)


class InstanceValues(NamedTuple):
    """Attention scores, probabilities and contributions of a bag's instances.

    Each is the mean over the models.

    Args:
        score: of attention before the softmax; None where the pooling has none.
        probability: of a class; None at embedding level.
        contribution: to the logit of a class, for it or against it; None where the pooling is not additive.
    """

    score: Float[np.ndarray, " instance"] | None
    probability: Float[np.ndarray, " instance"] | None
    contribution: Float[np.ndarray, " instance"] | None


def attention_by_slide(bags: Bags, predictions: dict[int, BagPrediction]) -> dict[str, Float[np.ndarray, " instance"]]:
    """Attention of each slide of the predicted bags, as shares of its bag's attention."""
    return {
        slide_id: attention
        for index, prediction in predictions.items()
        for slide_id, attention in bags.entries[index].by_slide(prediction.attention).items()
    }


def predict_bags(
    models: Iterable[MILModel] | MILModel,
    bags: Bags,
    indices: Iterable[SupportsIndex] | None = None,
    device: torch.device | None = None,
) -> dict[int, BagPrediction]:
    """Run every model over bags, without dropout: probabilities and attention by bag index.

    Args:
        models: of one run, or one model; moved to the device and left in evaluation mode.
        bags: read lazily.
        indices: of the bags to predict, such as ``bags.split("test")``; None: all.
        device: where to compute; None: where the first model is.

    Raises:
        InputError: there is no model, an index is that of no bag, or the bags have another number of features than a
            model.
    """
    check_bags(bags)
    models = _listed_models(models)
    indices = range(len(bags)) if indices is None else _listed_indices(indices, len(bags))
    device = next(models[0].parameters()).device if device is None else device
    check_width(models, bags.instance().shape[-1])
    for model in models:
        model.check_fits([bags.entries[index] for index in indices], 0, with_gradient=False)
    shared = mean_constants(models)
    predictions: dict[int, BagPrediction] = {}
    instances = sum(bags.lengths[index] for index in indices)
    for model in models:
        with torch_threads(useful_threads(model, bags.instance(), instances)):
            of_model = _predict_bags(model, bags, indices, device, shared)
        for index, (probability, attention) in of_model.items():
            before = predictions.get(index)
            members = probability[None] if before is None else np.vstack([before.members, probability])
            predictions[index] = BagPrediction(members, attention if before is None else before.attention + attention)
    return {index: BagPrediction(total.members, total.attention / len(models)) for index, total in predictions.items()}


def mean_constants(models: Sequence[MILModel]) -> Float[Tensor, " constant"]:
    """Mean over models of the constants of their target, on the CPU.

    Survival by hazards is reported at the mean cut points.
    """
    return torch.stack([model.constants.cpu() for model in models]).mean(dim=0)


def _listed_models(models: Iterable[MILModel] | MILModel) -> list[MILModel]:
    """Models one after another.

    Raises:
        InputError: there is none, or something else is there.
    """
    listed = [models] if isinstance(models, MILModel) or not isinstance(models, Iterable) else list(models)
    others = [type(model).__name__ for model in listed if not isinstance(model, MILModel)]
    if others or not listed:
        raise InputError(
            f"models: expected models, got {f'type {others[0]}' if others else 'none'}; allowed: one MILModel or "
            "several, such as that of fit, or Run.models()"
        )
    return listed


def _listed_indices(indices: Iterable[SupportsIndex], bags: int) -> list[int]:
    """Indices of bags one after another.

    Raises:
        InputError: one is that of no bag.
    """
    given = indices.tolist() if isinstance(indices, np.ndarray | torch.Tensor) else indices
    listed = list(given) if isinstance(given, Iterable) else None
    wrong = [given] if listed is None else [index for index in listed if not _is_index(index, bags)]
    if listed is None or wrong:
        raise InputError(
            f"indices: expected a list of indices of {bags:,} bags, got {wrong[0]!r}; allowed: whole numbers from 0 "
            f"to {bags - 1:,}, such as bags.split('test')"
        )
    return [int(index) for index in listed]


def _is_index(value: object, bags: int) -> bool:
    """True for the index of a bag; a boolean is none."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and int(value) in range(bags)


def check_width(models: Sequence[MILModel], features: int) -> None:
    """Check that models of features read as many as the bags have.

    Raises:
        InputError: a model reads another number.
    """
    widths = feature_widths(models)
    if widths - {features}:
        raise InputError(
            f"bags: expected {widths.pop()} features, as the model was trained on, got {features}; allowed: features "
            "of the same encoder"
        )


def feature_widths(models: Sequence[MILModel]) -> set[int]:
    """Numbers of features that models read; empty where all read patches."""
    return {len(model.encoder.mean) for model in models if isinstance(model.encoder, FeatureEncoder)}


@torch.no_grad()
def _predict_bags(
    model: MILModel, bags: Bags, indices: Sequence[int], device: torch.device, shared: Float[Tensor, " constant"]
) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    model.to(device).eval()
    groups = micro_batches(indices, bags.lengths, model.instance_budget(bags.instance()))
    predictions: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    for group, batch in zip(groups, bags.batches(groups), strict=True):
        probability, attention = _predict_batch(model, batch, shared)
        weights = np.split(attention, np.cumsum([bags.lengths[i] for i in group])[:-1])
        predictions |= dict(zip(group, zip(probability, weights, strict=True), strict=True))
    return predictions


def _predict_batch(
    model: MILModel, batch: BagBatch, shared: Float[Tensor, " constant"]
) -> tuple[Float[np.ndarray, "bag class"], Float[np.ndarray, " instance"]]:
    output = model.predict_bags(batch)
    values = model.target.values(output.output.double(), model.constants, shared)
    return values.cpu().numpy(), output.attention.double().cpu().numpy()


@torch.no_grad()
def predict_one_by_one(models: Sequence[MILModel], bags: Bags, device: torch.device) -> Iterator[BagPrediction]:
    """Prediction of each bag, as ``predict_bags`` of it alone, while the next is read.

    So no prediction depends on which bags are predicted beside it.

    Args:
        models: of one run; moved to the device and left in evaluation mode.
        bags: read lazily, each once for all models.
        device: where to compute.

    Raises:
        InputError: the bags have another number of features than a model.
    """
    check_width(models, bags.instance().shape[-1])
    shared = mean_constants(models)
    for model in models:
        model.check_fits(bags.entries, 0, with_gradient=False)
        model.to(device).eval()
    for index, batch in enumerate(bags.batches([index] for index in range(len(bags)))):
        of_models = []
        for model in models:
            with torch_threads(useful_threads(model, bags.instance(), bags.lengths[index])):
                of_models.append(_predict_batch(model, batch, shared))
        members, attention = zip(*of_models, strict=True)
        yield BagPrediction(np.vstack(members), np.sum(attention, axis=0) / len(models))


@torch.no_grad()
def instance_values(models: Sequence[MILModel], bag: Bag, label: int) -> InstanceValues:
    """Attention scores before the softmax, probabilities and contributions of a bag's instances.

    Args:
        models: of one run, on one device.
        bag: read in chunks.
        label: the class whose attention head, probability and contribution are taken where each class has its own.
    """
    values_of_models = [_instance_values(model, bag, label) for model in models]
    return InstanceValues(*map(_mean_over_models, zip(*values_of_models, strict=True)))


def _mean_over_models(of_models: Sequence[Float[np.ndarray, " instance"] | None]) -> np.ndarray | None:
    """Mean of what the models have; None where none has it."""
    given = [values for values in of_models if values is not None]
    return np.mean(given, axis=0) if given else None


def instance_columns(
    models: Sequence[MILModel], bag: Bag, label: int, *, with_leave_one_out: bool
) -> dict[str, Float[np.ndarray, " instance"]]:
    """Columns of a bag's instances, where the models have them.

    They are ``score``, ``instance_probability`` and ``contribution``.

    Args:
        models: of one run, on one device.
        bag: read in chunks.
        label: the predicted class.
        with_leave_one_out: also ``leave_one_out``, the log-odds of that class, of survival the risk, of regression the
            value, less those without the instance.
    """
    values = instance_values(models, bag, label)
    columns = {
        "score": values.score,
        "instance_probability": values.probability,
        "contribution": values.contribution,
    }
    if with_leave_one_out:
        columns["leave_one_out"] = _leave_one_out_change(models, bag, label)
    return {name: values for name, values in columns.items() if values is not None}


def _leave_one_out_change(models: Sequence[MILModel], bag: Bag, label: int) -> Float[np.ndarray, " instance"]:
    """Log-odds of a class, the risk or the value, less those without each instance.

    Mean over the models.

    NaN for the only instance of a bag.
    """
    changes = []
    for model in models:
        without = leave_one_out(model, bag).double().cpu()
        whole = model.predict_bags(pack([bag], [0])).output.double().cpu()
        contrast, constants = model.target.contrast, model.constants.cpu()
        changes.append((contrast(whole, label, constants) - contrast(without, label, constants)).numpy())
    mean: np.ndarray = np.mean(changes, axis=0)
    return mean


def _instance_values(model: MILModel, bag: Bag, label: int) -> InstanceValues:
    batch = pack([bag], [0])
    parts = [(lifted.scores, lifted.logit) for lifted in model.lift_chunks(batch)]
    scores, logits = (torch.cat(chunks).double() for chunks in zip(*parts, strict=True))
    heads, contributions = model.pooling.heads, model.contributions(batch)
    logit_of, constants = model.target.logit_of, model.constants
    return InstanceValues(
        scores[:, min(label, heads - 1)].cpu().numpy() if heads else None,
        torch.sigmoid(logit_of(logits, label, constants)).cpu().numpy() if logits.shape[1] else None,
        None if contributions is None else logit_of(contributions.double(), label, constants).cpu().numpy(),
    )
