"""The contract every auxiliary loss of the table keeps; chunks and workers are in test_streaming.py."""

import itertools

import pytest
import torch
from torch import Tensor

from milcore.config import PoolingName
from milcore.mil.bags.segments import Segments
from milcore.mil.pooling.auxiliary import AUXILIARY_LOSSES
from milcore.mil.pooling.protocol import AuxiliaryLoss, PoolingShape, Summary
from tests.mil.pooling.test_pooling import FLOAT, SETTINGS, WIDTH, part_of

SHAPES = {"two classes": (1, 1), "three classes": (1, 3), "three classes, three heads": (3, 3)}
LENGTHS = (2, 9, 1)
LABELS = torch.tensor([0, 1, 1])


class Loss:
    """An auxiliary loss with scores and values to draw."""

    def __init__(self, name: PoolingName, heads: int, classes: int) -> None:
        torch.manual_seed(1)
        self.auxiliary: AuxiliaryLoss = AUXILIARY_LOSSES[name](PoolingShape(WIDTH, 4, heads, classes, **SETTINGS)).to(
            FLOAT
        )
        self.heads = heads

    def draw(self, rows: int) -> tuple[Tensor, Tensor]:
        return torch.randn(rows, self.heads, dtype=FLOAT), torch.randn(rows, WIDTH, dtype=FLOAT)

    def __call__(self, scores: Tensor, values: Tensor, segments: Segments, labels: Tensor = LABELS) -> Tensor:
        return self.auxiliary.losses(self.auxiliary.lift(scores, values, segments), labels)


@pytest.fixture(params=itertools.product(AUXILIARY_LOSSES, SHAPES), ids="-".join)
def loss(request: pytest.FixtureRequest) -> Loss:
    name, shape = request.param
    return Loss(name, *SHAPES[shape])


def test_packed_bags_have_the_losses_of_each_alone_in_any_order(loss: Loss) -> None:
    scores, values = loss.draw(sum(LENGTHS))
    alone = []
    for own_scores, own_values, label in zip(scores.split(LENGTHS), values.split(LENGTHS), LABELS, strict=True):
        order = torch.randperm(len(own_scores))
        alone.append(loss(own_scores[order], own_values[order], Segments.whole([len(order)]), label[None]))
    torch.testing.assert_close(loss(scores, values, Segments.whole(LENGTHS)), torch.cat(alone))


def test_summaries_of_parts_merge_in_any_order_with_their_gradients(loss: Loss) -> None:
    scores, values = loss.draw(9)
    label, whole = torch.tensor([1]), Segments.whole([9])

    def lift(rows: slice) -> Summary:
        return loss.auxiliary.lift(scores[rows], values[rows], part_of(whole, rows))

    values.requires_grad_()
    expected = loss(scores, values, whole, label)
    (gradient,) = torch.autograd.grad(expected, values, retain_graph=True)
    merge = loss.auxiliary.merge
    for order in itertools.permutations([slice(0, 1), slice(1, 6), slice(6, 9)]):
        a, b, c = map(lift, order)
        for merged in (merge(merge(a, b), c), merge(a, merge(b, c))):
            of_parts = loss.auxiliary.losses(merged, label)
            torch.testing.assert_close(of_parts, expected)
            torch.testing.assert_close(torch.autograd.grad(of_parts, values, retain_graph=True)[0], gradient)


def test_gradients_are_those_of_finite_differences(loss: Loss) -> None:
    scores, values = loss.draw(sum(LENGTHS))
    segments, parameters = Segments.whole(LENGTHS), tuple(loss.auxiliary.parameters())
    assert torch.autograd.gradcheck(lambda own, *_: loss(scores, own, segments), (values.requires_grad_(), *parameters))


@pytest.mark.parametrize("extreme", [1e4, -1e4])
def test_extreme_values_stay_finite_with_their_gradients(loss: Loss, extreme: float) -> None:
    scores, values = (torch.full_like(drawn, extreme) for drawn in loss.draw(sum(LENGTHS)))
    losses = loss(scores, values.requires_grad_(), Segments.whole(LENGTHS))
    losses.sum().backward()
    assert torch.isfinite(losses).all()
    assert torch.isfinite(values.grad).all()
