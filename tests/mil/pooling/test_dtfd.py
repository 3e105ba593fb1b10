"""DTFD beside torchmil's with given groups, beside a plain implementation of a whole bag, and its drawn pseudo-bags."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchmil.models import DTFDMIL, dtfdmil
from torchmil.nn import AttentionPool

from milcore.config import TrainConfig
from milcore.mil.bags.batch import Bag, pack
from milcore.mil.dropout import Dropout
from milcore.mil.model import MILModel
from milcore.mil.pooling.attention import AttentionScore
from milcore.mil.pooling.streaming import ChunkPlan
from tests.mil.pooling.test_streaming import WHOLE, WIDTH, chunks_of
from tests.mil.pooling.whole_bags import LENGTHS, bags, model_of

GROUPS = 3


def config_of(distillation: str) -> TrainConfig:
    return TrainConfig(
        pooling="dtfd", dtfd_distillation=distillation, dtfd_groups=GROUPS, hidden=8, attention_hidden=4,
        precision="fp64", dropout=0.0,
    )  # fmt: skip


def groups_of(model: MILModel, bag: Bag, key: int, dropout: Dropout | None) -> list[list[int]]:
    """Rows of each pseudo-bag that has any."""
    lifted = model.lifter(bag.instances.dtype, dropout)(pack([bag], [key]).chunk(0, len(bag.instances), WHOLE.device))
    number = lifted.scores[:, -1].tolist()
    return [rows for g in range(GROUPS) if (rows := [k for k, own in enumerate(number) if own == g])]


def scores_of(network: AttentionScore, h: Tensor) -> Tensor:
    return network.score(torch.tanh(network.content(h)) * torch.sigmoid(network.gate(h)))


def plain(model: MILModel, rows: Tensor, groups: list[list[int]], distillation: str) -> tuple[Tensor, Tensor]:
    """Log-probabilities of a bag, and of each of its pseudo-bags."""
    pooling, h = model.pooling, torch.relu(model.encoder.project(rows))
    of_groups, distilled = [], []
    for group in groups:
        a = torch.softmax(scores_of(pooling.attention, h[group]), 0)
        of_groups.append(pooling.group_classifier((a.t() @ h[group])[0]))
        if distillation == "afs":
            distilled.append(a.t() @ h[group])
            continue
        for activation in (a * (h[group] @ pooling.group_classifier.weight.t())).t():
            distilled += [h[group][activation.argmax()][None], h[group][activation.argmin()][None]]
    features = torch.cat(distilled)
    a = torch.softmax(scores_of(pooling.second_attention, features), 0)
    return log_prob(model.classifier((a.t() @ features)[0])), torch.stack([log_prob(logit) for logit in of_groups])


def log_prob(logit: Tensor) -> Tensor:
    return torch.log_softmax(logit, 0) if len(logit) > 1 else functional.logsigmoid(torch.cat([-logit, logit]))


@pytest.mark.parametrize("plan", [WHOLE, chunks_of(7, recomputed=False), chunks_of(4, recomputed=True)], ids=str)
@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("distillation", ["afs", "maxmins"])
def test_losses_and_gradients_are_those_of_a_plain_whole_bag(distillation: str, classes: int, plan: ChunkPlan) -> None:
    """Of the pseudo-bags of an epoch; a bag of one instance has one pseudo-bag."""
    (model, other), data = (model_of(config_of(distillation), classes) for _ in range(2)), bags()
    dropout, label = Dropout(5, 2, 0.0), 1
    batch = pack(data, range(len(LENGTHS)))
    losses = model.losses(batch, dropout, lambda output: -output[:, label], plan)
    expected = []
    for key, bag in enumerate(data):
        groups = groups_of(other, bag, key, dropout)
        of_bag, of_groups = plain(other, bag.instances, groups, distillation)
        expected.append(-(of_bag[label] + of_groups[:, label].mean()) / 2)
    torch.testing.assert_close(losses, torch.stack(expected), atol=1e-9, rtol=0)
    losses.sum().backward()
    torch.stack(expected).sum().backward()
    for (name, parameter), of_other in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, of_other.grad, atol=1e-9, rtol=1e-9, msg=name)


@pytest.mark.parametrize("distillation", ["afs", "maxmins"])
def test_predictions_have_pseudo_bags_of_their_own_whatever_is_beside_the_bag(distillation: str) -> None:
    model, data = model_of(config_of(distillation), 2), bags()
    together = model.predict_bags(pack(data, range(len(LENGTHS))))
    for key, bag in enumerate(data):
        alone = model.predict_bags(pack([bag], [key + 7]))
        torch.testing.assert_close(alone.output[0], together.output[key])
        expected = plain(model, bag.instances, groups_of(model, bag, key, None), distillation)[0]
        torch.testing.assert_close(alone.output[0], expected)


def test_pseudo_bags_hang_on_seed_epoch_bag_and_instance_and_are_equally_likely() -> None:
    """Of 3,000 instances a third in each; sd 26."""
    model = model_of(config_of("afs"), 2)
    bag = Bag("x", "", 0, torch.zeros(3000, WIDTH, dtype=torch.float64))
    drawn = groups_of(model, bag, 1, Dropout(0, 0, 0.5))
    assert all(abs(len(group) - 1000) < 130 for group in drawn)
    assert groups_of(model, bag, 1, Dropout(0, 0, 0.2)) == drawn
    for key, seed, epoch in ((2, 0, 0), (1, 1, 0), (1, 0, 1)):
        assert groups_of(model, bag, key, Dropout(seed, epoch, 0.5)) != drawn
    fewer = Bag("x", "", 0, bag.instances[:100])
    assert groups_of(model, fewer, 1, Dropout(0, 0, 0.5)) == [[k for k in group if k < 100] for group in drawn]


def torchmil_of(model: MILModel) -> DTFDMIL:
    """Their model with our weights, its attention gated as in the paper."""
    embed = nn.Sequential(nn.Linear(WIDTH, 8), nn.ReLU())
    theirs = DTFDMIL((WIDTH,), att_dim=4, n_groups=GROUPS, distill_mode="afs", feat_ext=embed)
    theirs.attention_pool, theirs.u_attention_pool = (AttentionPool(in_dim=8, att_dim=4, gated=True) for _ in range(2))
    theirs = theirs.double()
    for name, layer in layers_of(model).items():
        theirs.get_submodule(name).load_state_dict(layer.state_dict())
    return theirs


def layers_of(model: MILModel) -> dict[str, nn.Module]:
    """Our layers by the names of theirs."""
    pooling = model.pooling
    layers = {"feat_ext.0": model.encoder.project, "classifier.module": pooling.group_classifier,
              "u_classifier.module": model.classifier}  # fmt: skip
    for name, network in {"attention_pool": pooling.attention, "u_attention_pool": pooling.second_attention}.items():
        parts = {"fc1.module": network.content, "fc_gated.module": network.gate, "fc2": network.score}
        layers |= {f"{name}.{part}": layer for part, layer in parts.items()}
    return layers


@pytest.mark.parametrize("label", [0, 1])
def test_afs_with_given_groups_has_the_logit_losses_and_gradients_of_torchmil(
    label: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Theirs draws groups by NumPy, ours here, and adds the losses of both tiers up, of which ours is the mean."""
    model, (bag, *_) = model_of(config_of("afs"), 2), bags()
    dropout = Dropout(5, 2, 0.0)
    groups = groups_of(model, bag, 0, dropout)
    numbers = SimpleNamespace(
        arange=lambda *_: None, random=SimpleNamespace(shuffle=lambda _: None), array_split=lambda *_: groups
    )
    monkeypatch.setattr(dtfdmil, "np", numbers)
    theirs = torchmil_of(model)
    logit, of_tiers = theirs.compute_loss(torch.tensor([label]), bag.instances[None])
    batch = pack([bag], [0])
    torch.testing.assert_close(model(batch, dropout)[0, 1], functional.logsigmoid(logit[0]), atol=1e-5, rtol=0)
    (loss,) = model.losses(batch, dropout, lambda output: -output[:, label])
    expected = sum(of_tiers.values()) / 2
    torch.testing.assert_close(loss.float(), expected.float(), atol=1e-5, rtol=0)
    loss.backward()
    expected.backward()
    for name, layer in layers_of(model).items():
        for own, other in zip(layer.parameters(), theirs.get_submodule(name).parameters(), strict=True):
            assert own.grad.abs().max() > 1e-6, name
            torch.testing.assert_close(own.grad, other.grad, atol=1e-5, rtol=0, msg=name)
