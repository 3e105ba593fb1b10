"""Models in fp64 beside plain implementations of whole bags, in values and gradients."""

from collections.abc import Callable

import torch
from torch import Tensor

from milcore.config import TrainConfig
from milcore.mil.bags.batch import Bag, pack
from milcore.mil.model import MILModel, make_model
from milcore.mil.pooling.streaming import ChunkPlan
from tests.mil.pooling.test_streaming import WIDTH

LENGTHS = (30, 1, 7)


def model_of(config: TrainConfig, classes: int) -> MILModel:
    """Model whose biases are not 0 either."""
    model = make_model(config, WIDTH, classes)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return model


def bags() -> list[Bag]:
    generator = torch.Generator().manual_seed(1)
    return [Bag(str(n), "", 0, torch.randn(n, WIDTH, generator=generator, dtype=torch.float64)) for n in LENGTHS]


def assert_alike(
    config: TrainConfig, classes: int, plan: ChunkPlan, log_prob_of: Callable[[MILModel, Tensor], Tensor]
) -> None:
    """Assert values and gradients of a model equal to those of a plain one.

    Args:
        config: of both.
        classes: of both.
        plan: of the model's chunks.
        log_prob_of: of a whole bag, from the plain model and the bag's rows.
    """
    model, plain = model_of(config, classes), model_of(config, classes)
    log_prob = model(pack(bags(), range(len(LENGTHS))), None, plan)
    expected = torch.stack([log_prob_of(plain, bag.instances) for bag in bags()])
    torch.testing.assert_close(log_prob, expected, atol=1e-9, rtol=0)
    cotangent = torch.randn(expected.shape, generator=torch.Generator().manual_seed(3), dtype=expected.dtype)
    log_prob.backward(cotangent)
    expected.backward(cotangent)
    for (name, parameter), other in zip(model.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad, atol=1e-9, rtol=1e-9, msg=name)
