"""Additive pooling beside a plain implementation of a whole bag, in the model, with its contributions."""

import pytest
import torch
from torch import Tensor

from milcore.config import TrainConfig
from milcore.mil.bags.batch import pack
from milcore.mil.inference import instance_columns
from milcore.mil.model import MILModel, make_model
from milcore.mil.pooling.streaming import ChunkPlan
from tests.mil.pooling.test_streaming import WHOLE, WIDTH, chunks_of
from tests.mil.pooling.whole_bags import LENGTHS, assert_alike, bags, model_of


def config_of(heads: str) -> TrainConfig:
    return TrainConfig(
        pooling="additive", hidden=8, attention_hidden=4, attention_heads=heads, precision="fp64", dropout=0.0
    )


def contributions_of(model: MILModel, rows: Tensor) -> Tensor:
    """psi(a_i h_i) of a whole bag, by torch's own layers."""
    h = torch.relu(model.encoder.project(rows))
    attention = model.pooling.attention
    a = torch.softmax(attention.score(torch.tanh(attention.content(h))), dim=0)
    hidden = [torch.relu(model.pooling.content(a[:, head : head + 1] * h)) for head in range(a.shape[1])]
    psi = model.classifier.weight
    if len(hidden) == 1:
        return hidden[0] @ psi.t()
    return torch.stack([of_head @ psi[c] for c, of_head in enumerate(hidden)], dim=1)


def log_prob_of(model: MILModel, rows: Tensor) -> Tensor:
    logit = contributions_of(model, rows).sum(dim=0) + model.classifier.bias
    if len(logit) == 1:
        logit = torch.stack([torch.zeros_like(logit[0]), logit[0]])
    return torch.log_softmax(logit, dim=0)


@pytest.mark.parametrize("plan", [WHOLE, chunks_of(7, recomputed=False), chunks_of(4, recomputed=True)], ids=str)
@pytest.mark.parametrize(("classes", "heads"), [(2, "shared"), (3, "shared"), (3, "per_class")])
def test_values_and_gradients_are_those_of_a_plain_whole_bag(plan: ChunkPlan, classes: int, heads: str) -> None:
    assert_alike(config_of(heads), classes, plan, log_prob_of)


@pytest.mark.parametrize(("classes", "label"), [(2, 0), (2, 1), (3, 2)])
def test_contributions_are_signed_and_sum_to_the_logit_less_its_bias(classes: int, label: int) -> None:
    models = [model_of(config_of("shared"), classes)]
    bag = bags()[0]
    column = instance_columns(models, bag, label, with_leave_one_out=False)["contribution"]
    of_class = contributions_of(models[0], bag.instances)
    own = of_class[:, label] if classes == 3 else of_class[:, 0] * (1 if label == 1 else -1)
    assert column.tolist() == pytest.approx(own.tolist(), abs=1e-12)
    assert column.min() < 0.0 < column.max() or classes == 3


@pytest.mark.parametrize(("classes", "heads"), [(2, "shared"), (3, "per_class")])
def test_contributions_are_not_rounded_to_the_classifier_s_bias(classes: int, heads: str) -> None:
    model, batch = model_of(config_of(heads), classes), pack(bags(), range(len(LENGTHS)))
    contributions = model.contributions(batch)
    torch.nn.init.constant_(model.classifier.bias, 1e12)
    assert torch.equal(model.contributions(batch), contributions)


def test_poolings_that_are_no_sum_have_no_contribution() -> None:
    model = make_model(TrainConfig(hidden=8, attention_hidden=4), WIDTH, 2)
    assert model.contributions(pack(bags(), range(3))) is None


def test_a_bag_in_memory_is_embedded_once_for_both_passes() -> None:
    model, lifts = model_of(config_of("shared"), 2), []
    embedder = model.encoder.embedder

    def counting(*settings: object):
        embed = embedder(*settings)
        return lambda rows, mask: (lifts.append(len(rows)), embed(rows, mask))[1]

    model.encoder.embedder = counting
    model(pack(bags(), range(3)), None, WHOLE)
    assert lifts == [sum(LENGTHS)]
