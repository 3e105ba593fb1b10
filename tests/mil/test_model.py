"""The model beside the formulas of the paper, for several classes, in half precision, with its attention."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from milcore.config import POOLING_LEVELS, POOLING_SCOPES, TARGETS_OF_COLUMNS, Target, TrainConfig, without_unread
from milcore.mil.bags.batch import Bag, pack
from milcore.mil.dropout import Dropout
from milcore.mil.model import MILModel, make_model
from tests.mil.places import placed

WIDTH = 6
ROWS = [(name, level) for name, levels in POOLING_LEVELS.items() for level in levels]


def bags_of(*lengths: int, dtype: torch.dtype = torch.float64) -> list[Bag]:
    generator = torch.Generator().manual_seed(3)
    drawn = [torch.randn(n, WIDTH, generator=generator, dtype=torch.float64) for n in lengths]
    return [placed(Bag(str(k), str(k), k % 2, (3.0 + 2.0 * rows).to(dtype))) for k, rows in enumerate(drawn)]


def model_of(pooling: str, level: str, classes: int = 2, **more: object) -> MILModel:
    settings = {"pooling": pooling, "level": level, "hidden": 8, "attention_hidden": 4, "precision": "fp64", **more}
    settings.setdefault("transmil_landmarks", 4)
    model = make_model(TrainConfig(**without_unread(settings)), WIDTH, classes)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(4)))
    model.encoder.standardise(torch.full((WIDTH,), 3.0), torch.full((WIDTH,), 2.0))
    return model


def embeddings_of(model: MILModel, bag: Bag) -> Tensor:
    standardised = (bag.instances - model.encoder.mean) / model.encoder.sd
    return torch.relu(standardised @ model.encoder.project.weight.t() + model.encoder.project.bias)


def test_gated_attention_at_embedding_level_is_the_paper_s_formula() -> None:
    model = model_of("gated_attention", "embedding")
    network = model.pooling.attention
    for bag in bags_of(5, 1):
        h = embeddings_of(model, bag)
        score = (torch.tanh(network.content(h)) * torch.sigmoid(network.gate(h))) @ network.score.weight[0]
        weights = torch.softmax(score, dim=0)
        expected = functional.logsigmoid(model.classifier(weights @ h))
        output = model.predict_bags(pack([bag], [0]))
        torch.testing.assert_close(output.output[0, 1:], expected)
        torch.testing.assert_close(output.attention, weights)


def test_three_classes_with_a_head_each_are_the_formula_of_each_class() -> None:
    model = model_of("attention", "embedding", classes=3, attention_heads="per_class")
    (bag,) = bags_of(5)
    h, network = embeddings_of(model, bag), model.pooling.attention
    weights = torch.softmax(torch.tanh(network.content(h)) @ network.score.weight.t(), dim=0)
    logits = (weights.t() @ h * model.classifier.weight).sum(1) + model.classifier.bias
    output = model.predict_bags(pack([bag], [0]))
    torch.testing.assert_close(output.output[0], torch.log_softmax(logits, 0))
    torch.testing.assert_close(output.attention, weights[:, logits.argmax()])


def test_three_classes_at_instance_level_are_the_softmax_of_their_log_odds() -> None:
    model = model_of("mean", "instance", classes=3)
    (bag,) = bags_of(5)
    theta = torch.sigmoid(model.classifier(embeddings_of(model, bag))).mean(0)
    log_prob = model(pack([bag], [0]), None)
    torch.testing.assert_close(log_prob[0], torch.log_softmax(torch.logit(theta), 0))


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("heads", ["shared", "per_class"])
@pytest.mark.parametrize(("pooling", "level"), ROWS)
def test_probabilities_and_attention_sum_to_one(pooling: str, level: str, heads: str, classes: int) -> None:
    output = model_of(pooling, level, classes, attention_heads=heads).predict_bags(pack(bags_of(4, 1, 7), range(3)))
    torch.testing.assert_close(output.output.exp().sum(1), torch.ones(3, dtype=torch.float64))
    sums = torch.stack([of_bag.sum() for of_bag in output.attention.split([4, 1, 7])])
    torch.testing.assert_close(sums, torch.ones(3, dtype=torch.float64))


def test_where_no_weight_is_defined_attention_is_the_share_of_the_summed_probabilities() -> None:
    model = model_of("noisy_or", "instance")
    (bag,) = bags_of(4)
    p = torch.sigmoid(model.classifier(embeddings_of(model, bag)))[:, 0]
    torch.testing.assert_close(model.predict_bags(pack([bag], [0])).attention, p / p.sum())


@pytest.mark.parametrize(
    ("pooling", "target"), [(name, target) for name, scope in POOLING_SCOPES.items() for target in scope.targets]
)
def test_every_pooling_has_outputs_of_the_targets_that_it_serves(pooling: str, target: Target) -> None:
    columns = {name: name for name, targets in TARGETS_OF_COLUMNS.items() if target in targets} | {"target": target}
    model = model_of(pooling, POOLING_LEVELS[pooling][-1], classes=3, **columns)
    batch = pack(bags_of(4, 1, 7), range(3))
    assert model(batch, None).shape == (3, model.outputs)
    model.losses(batch, None, lambda output: output[:, 0] ** 2).sum().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-5), ("bf16", 0.05)])
@pytest.mark.parametrize("stored", [torch.float16, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("pooling", "level"), ROWS)
def test_probabilities_and_gradients_are_near_those_of_double_precision(
    pooling: str, level: str, stored: torch.dtype, precision: str, tolerance: float
) -> None:
    """Half precision keeps 8 bits; an instance whose ReLU falls on the other side is one of hundreds here.

    In dsmil the rounding of a critical instance's query is that of all scores of its bag.
    """
    tolerance *= 2 if pooling == "dsmil" else 1

    def learn(precision: str, bags: list[Bag]) -> tuple[Tensor, Tensor]:
        model, batch = model_of(pooling, level, precision=precision), pack(bags, range(3))
        log_prob = model(batch, Dropout(0, 0, 0.5))
        losses = model.losses(batch, Dropout(0, 0, 0.5), lambda output: -output.gather(1, batch.labels[:, None])[:, 0])
        losses.sum().backward()
        gradient = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
        return log_prob.detach().double().exp(), gradient.double()

    bags = bags_of(400, 300, 500, dtype=stored)
    exact = [Bag(bag.bag_id, "", bag.label, bag.instances.double(), bag.places) for bag in bags]
    (probability, gradient), (expected, expected_gradient) = learn(precision, bags), learn("fp64", exact)
    assert (probability - expected).abs().max() <= tolerance
    assert (gradient - expected_gradient).norm() <= tolerance * expected_gradient.norm()


def test_features_far_from_zero_keep_their_spread_in_half_precision() -> None:
    """At mean 100 and sd 1 a bf16 number has steps of 0.5; centred before the cast it has steps below 0.02."""
    bag = Bag("x", "", 1, 100.0 + torch.randn(200, WIDTH, generator=torch.Generator().manual_seed(0)))
    log_probs = []
    for precision in ("bf16", "fp32"):
        model = model_of("attention", "embedding", precision=precision)
        model.encoder.standardise(torch.full((WIDTH,), 100.0), torch.ones(WIDTH))
        log_probs.append(model.predict_bags(pack([bag], [0])).output)
    torch.testing.assert_close(log_probs[0], log_probs[1], atol=0.02, rtol=0)
    assert bag.instances.mean() > 99.0  # read, not changed
