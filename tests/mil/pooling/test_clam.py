"""CLAM beside torchmil's, beside a plain implementation of a whole bag, and its loss of instances by hand."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchmil.models.clam import CLAM_SB
from torchmil.nn.utils import SmoothTop1SVM

from milcore.config import TrainConfig
from milcore.mil.bags.batch import pack
from milcore.mil.bags.segments import Segments
from milcore.mil.model import MILModel
from milcore.mil.pooling.auxiliary import AUXILIARY_LOSSES
from milcore.mil.pooling.protocol import PoolingShape
from milcore.mil.pooling.streaming import ChunkPlan
from tests.mil.pooling.test_pooling import SETTINGS
from tests.mil.pooling.test_streaming import WHOLE, WIDTH, chunks_of
from tests.mil.pooling.whole_bags import LENGTHS, bags, model_of

LABELS = (0, 1, 1)


def config_of(pooling: str, **more: object) -> TrainConfig:
    return TrainConfig(
        pooling=pooling, hidden=8, attention_hidden=4, precision="fp64", dropout=0.0, clam_instances=3, **more
    )


def smooth_top1_svm(outputs: Tensor, targets: Tensor) -> Tensor:
    """The loss of smooth-topk with alpha = tau = 1: cross-entropy after 1 is added to the other output."""
    targets = targets.flatten().long()
    return functional.cross_entropy(outputs + 1 - functional.one_hot(targets, 2), targets)


def scores_of(model: MILModel, h: Tensor) -> Tensor:
    network = model.pooling.attention
    return network.score(torch.tanh(network.content(h)) * torch.sigmoid(network.gate(h)))


def plain_loss(model: MILModel, rows: Tensor, label: int) -> Tensor:
    """Loss of a whole bag by torch's own functions."""
    h = torch.relu(model.encoder.project(rows))
    scores = scores_of(model, h)
    z = torch.softmax(scores, 0).t() @ h
    logit = (z * model.classifier.weight).sum(1) + model.classifier.bias
    logit = torch.cat([torch.zeros_like(logit), logit]) if len(logit) == 1 else logit
    of_instances, k = model.auxiliary.classifier(h), min(3, len(rows))
    losses = []
    for c in range(of_instances.shape[1]):
        attended = scores[:, min(c, scores.shape[1] - 1)]
        most, least = attended.topk(k).indices, attended.topk(k, largest=False).indices
        chosen = torch.cat([most, least]) if c == label else most
        targets = torch.zeros(len(chosen)) + (torch.arange(len(chosen)) < k if c == label else 0)
        outputs = torch.stack([torch.zeros(len(chosen)), of_instances[chosen, c]], dim=1)
        losses.append(smooth_top1_svm(outputs, targets))
    bag = functional.cross_entropy(logit[None], torch.tensor([label]))
    return 0.7 * bag + 0.3 * torch.stack(losses).mean()


@pytest.mark.parametrize("plan", [WHOLE, chunks_of(7, recomputed=False), chunks_of(4, recomputed=True)], ids=str)
@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("pooling", ["clam_sb", "clam_mb"])
def test_losses_and_gradients_are_those_of_a_plain_whole_bag(pooling: str, classes: int, plan: ChunkPlan) -> None:
    (model, plain), data = (model_of(config_of(pooling), classes) for _ in range(2)), bags()
    labelled = [bag.__class__(bag.bag_id, "", label, bag.instances) for bag, label in zip(data, LABELS, strict=True)]
    batch = pack(labelled, range(len(LENGTHS)))
    losses = model.losses(batch, None, lambda log_prob: -log_prob.gather(1, batch.labels[:, None])[:, 0], plan)
    expected = torch.stack([plain_loss(plain, bag.instances, bag.label) for bag in labelled])
    torch.testing.assert_close(losses, expected, atol=1e-9, rtol=0)
    losses.sum().backward()
    expected.sum().backward()
    for (name, parameter), other in zip(model.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad, atol=1e-9, rtol=1e-9, msg=name)


def torchmil_of(model: MILModel) -> CLAM_SB:
    """Their model with our weights, and their loss function replaced by that of smooth-topk."""
    embed = nn.Sequential(nn.Linear(WIDTH, 8), nn.ReLU())
    theirs = CLAM_SB((WIDTH,), att_dim=4, k_sample=3, gated=True, feat_ext=embed).double()
    network = model.pooling.attention
    layers = {
        embed[0]: model.encoder.project,
        theirs.pool.fc1.module: network.content,
        theirs.pool.fc_gated.module: network.gate,
        theirs.pool.fc2: network.score,
        theirs.classifier.module: model.classifier,
    }
    for layer, of_ours in layers.items():
        layer.load_state_dict(of_ours.state_dict())
    with torch.no_grad():
        for layer, weight, bias in zip(theirs.inst_classifiers, *model.auxiliary.classifier.parameters(), strict=True):
            layer.module.weight.copy_(torch.stack([torch.zeros_like(weight), weight]))
            layer.module.bias.copy_(torch.stack([torch.zeros_like(bias), bias]))
    theirs.inst_loss_fn.forward = smooth_top1_svm
    return theirs


@pytest.mark.parametrize("label", [0, 1])
def test_losses_and_gradients_are_those_of_torchmil(label: int) -> None:
    """Theirs adds up the losses of instances by both classifiers, of which ours is the mean, and does not weigh."""
    model, (bag, *_) = model_of(config_of("clam_sb"), 2), bags()
    theirs = torchmil_of(model)
    logit, expected_losses = theirs.compute_loss(torch.tensor([label]), bag.instances[None])
    batch = pack([bag.__class__("x", "", label, bag.instances)], [0])
    torch.testing.assert_close(model(batch, None)[0, 1], functional.logsigmoid(logit[0]), atol=1e-5, rtol=0)
    (loss,) = model.losses(batch, None, lambda log_prob: -log_prob[:, label])
    expected = 0.7 * expected_losses["BCEWithLogitsLoss"] + 0.3 * expected_losses["InstLoss"] / 2
    torch.testing.assert_close(loss.float(), expected.float(), atol=1e-5, rtol=0)
    loss.backward()
    expected.backward()
    network = model.pooling.attention
    ours = {
        "feat_ext.0": model.encoder.project, "pool.fc1": network.content, "pool.fc_gated": network.gate,
        "pool.fc2": network.score, "classifier": model.classifier,
    }  # fmt: skip
    for name, layer in ours.items():
        for own, other in zip(layer.parameters(), theirs.get_submodule(name).parameters(), strict=True):
            assert own.grad.abs().max() > 1e-4, name
            torch.testing.assert_close(own.grad, other.grad, atol=1e-5, rtol=0, msg=name)
    of_theirs = torch.stack([layer.module.weight.grad[1] for layer in theirs.inst_classifiers])
    torch.testing.assert_close(model.auxiliary.classifier.weight.grad, of_theirs, atol=1e-5, rtol=0)


def test_torchmil_s_own_loss_of_instances_is_no_mean_over_them() -> None:
    """It pairs every output with every target, so that an instance twice has another loss: hence the replacement."""
    outputs, targets = torch.tensor([[0.3, -0.2]]), torch.tensor([[1.0]])
    once, twice = (SmoothTop1SVM(2)(outputs.repeat(n, 1), targets.repeat(n, 1)) for n in (1, 2))
    assert abs(once - twice) > 0.1
    assert smooth_top1_svm(outputs.repeat(2, 1), targets.repeat(2, 1)) == smooth_top1_svm(outputs, targets)


def test_the_loss_of_the_most_and_the_least_attended_instance_by_hand() -> None:
    """k = 1, label 0, instance logits of class 0: 2, 5 and -1 by rising attention; class 1: 0.

    (softplus(1 - (-1)) + softplus(1 + 2)) / 2 for class 0, softplus(1 + 0) for class 1; the instance between is left.
    """
    auxiliary = AUXILIARY_LOSSES["clam_sb"](PoolingShape(1, 1, 1, 1, **(SETTINGS | {"clam_instances": 1}))).double()
    with torch.no_grad():
        auxiliary.classifier.weight.copy_(torch.tensor([[1.0], [0.0]]))
        auxiliary.classifier.bias.zero_()
    scores = torch.tensor([[0.1], [0.2], [0.3]], dtype=torch.float64)
    values = torch.tensor([[2.0], [5.0], [-1.0]], dtype=torch.float64)
    summary = auxiliary.lift(scores, values, Segments.whole([3]))
    expected = ((math.log1p(math.exp(2.0)) + math.log1p(math.exp(3.0))) / 2 + math.log1p(math.exp(1.0))) / 2
    assert auxiliary.losses(summary, torch.tensor([0])).item() == pytest.approx(expected)


def test_two_classes_have_a_head_and_a_logit_each_in_clam_mb() -> None:
    model = model_of(config_of("clam_mb"), 2)
    assert (model.pooling.heads, len(model.classifier.weight)) == (2, 2)
    assert model_of(config_of("clam_sb"), 3).pooling.heads == 1
