"""DSMIL beside torchmil's, beside a plain implementation of a whole bag with several classes, and by hand."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchmil.models import DSMIL

from milcore.config import TrainConfig
from milcore.mil.bags.batch import Bag, pack
from milcore.mil.model import MILModel
from milcore.mil.pooling.streaming import ChunkPlan
from tests.mil.pooling.test_streaming import WHOLE, WIDTH, chunks_of
from tests.mil.pooling.whole_bags import assert_alike, bags, model_of

CONFIG = TrainConfig(pooling="dsmil", hidden=8, attention_hidden=4, precision="fp64", dropout=0.0)


def streams_of(model: MILModel, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Logits of the bag's embeddings and of the critical instances, class by class."""
    pooling, h = model.pooling, torch.relu(model.encoder.project(rows))
    of_instances, query = pooling.instance_classifier(h), pooling.query(h)
    of_bag = []
    for c, row in enumerate(model.classifier.weight):
        critical = query[of_instances[:, c].argmax()]
        a = torch.softmax(query @ critical / math.sqrt(len(critical)), dim=0)
        of_bag.append(row @ (a @ h) + model.classifier.bias[c])
    return torch.stack(of_bag), of_instances.amax(0)


def log_prob_of(model: MILModel, rows: Tensor) -> Tensor:
    logit = torch.stack(streams_of(model, rows)).mean(0)
    return torch.log_softmax(logit, 0) if len(logit) > 1 else functional.logsigmoid(torch.cat([-logit, logit]))


@pytest.mark.parametrize("plan", [WHOLE, chunks_of(7, recomputed=False), chunks_of(4, recomputed=True)], ids=str)
@pytest.mark.parametrize("classes", [2, 3])
def test_values_and_gradients_are_those_of_a_plain_whole_bag(plan: ChunkPlan, classes: int) -> None:
    assert_alike(CONFIG, classes, plan, log_prob_of)


def torchmil_of(model: MILModel) -> DSMIL:
    """Their model with our weights."""
    encoder, pooling = model.encoder.project, model.pooling
    embed = nn.Sequential(nn.Linear(WIDTH, 8), nn.ReLU())
    theirs = DSMIL((WIDTH,), att_dim=4, feat_ext=embed).double()
    layers = {embed[0]: encoder, theirs.q_nn: pooling.query, theirs.inst_classifier: pooling.instance_classifier}
    for layer, of_ours in (layers | {theirs.bag_classifier: model.classifier}).items():
        layer.load_state_dict(of_ours.state_dict())
    return theirs


@pytest.mark.parametrize("label", [0, 1])
def test_logit_losses_and_gradients_are_those_of_torchmil(label: int) -> None:
    """Theirs adds the losses of both streams up, of which ours is the mean."""
    model, (bag, *_) = model_of(CONFIG, 2), bags()
    theirs = torchmil_of(model)
    expected_logit, expected_losses = theirs.compute_loss(torch.tensor([label]), bag.instances[None])
    batch = pack([bag], [0])
    output = model(batch, None)
    torch.testing.assert_close(output[0, 1], functional.logsigmoid(expected_logit[0]), atol=1e-5, rtol=0)
    (loss,) = model.losses(batch, None, lambda log_prob: -log_prob[:, label])
    expected = sum(expected_losses.values()) / 2
    torch.testing.assert_close(loss.float(), expected, atol=1e-5, rtol=0)
    loss.backward()
    expected.backward()
    ours = {
        "feat_ext.0": model.encoder.project, "q_nn": model.pooling.query, "bag_classifier": model.classifier,
        "inst_classifier": model.pooling.instance_classifier,
    }  # fmt: skip
    for name, layer in ours.items():
        for own, other in zip(layer.parameters(), theirs.get_submodule(name).parameters(), strict=True):
            assert own.grad.abs().max() > 1e-4, name
            torch.testing.assert_close(own.grad, other.grad, atol=1e-5, rtol=0, msg=name)


def test_without_queries_the_logit_is_the_mean_of_those_of_the_mean_and_of_the_critical_instance_by_hand() -> None:
    """Embeddings 1 and 3, instance logit h - 1, classifier 2 h: (2 * 2 + (3 - 1)) / 2 = 3."""
    model = model_of(CONFIG.model_copy(update={"hidden": 1, "attention_hidden": 1}), 2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.encoder.project.weight[0, 0] = 1.0
        model.pooling.instance_classifier.weight.fill_(1.0)
        model.pooling.instance_classifier.bias.fill_(-1.0)
        model.classifier.weight.fill_(2.0)
    rows = torch.zeros(2, WIDTH, dtype=torch.float64)
    rows[:, 0] = torch.tensor([1.0, 3.0])
    log_prob = model(pack([Bag("x", "", 1, rows)], [0]), None)[0]
    assert (log_prob[1] - log_prob[0]).item() == pytest.approx(3.0)
