"""Multi-head attention pooling beside torch's scaled dot-product attention over whole bags."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from milcore.config import TrainConfig, TuneConfig
from milcore.errors import InputError
from milcore.mil.bags.batch import pack
from milcore.mil.inference import instance_columns
from milcore.mil.model import MILModel
from milcore.mil.pooling.streaming import ChunkPlan
from tests.mil.pooling.test_streaming import WHOLE, chunks_of
from tests.mil.pooling.whole_bags import assert_alike, bags, model_of

HIDDEN = 12


def config_of(heads: int, queries: int) -> TrainConfig:
    return TrainConfig(
        pooling="multi_head_attention", hidden=HIDDEN, pooling_heads=heads, pooling_queries=queries, precision="fp64"
    )


def logit_of(model: MILModel, rows: Tensor) -> Tensor:
    pooling, h = model.pooling, torch.relu(model.encoder.project(rows))
    query, key, value = (
        each.unflatten(1, (pooling.parts, -1)).transpose(0, 1)[None]
        for each in (pooling.query, pooling.key(h), pooling.value(h))
    )
    of_heads = functional.scaled_dot_product_attention(query, key, value)[0].transpose(0, 1)
    return model.classifier(pooling.join(of_heads.flatten()))


def log_prob_of(model: MILModel, rows: Tensor) -> Tensor:
    logit = logit_of(model, rows)
    return torch.log_softmax(logit, 0) if len(logit) > 1 else functional.logsigmoid(torch.cat([-logit, logit]))


@pytest.mark.parametrize("plan", [WHOLE, chunks_of(7, recomputed=False), chunks_of(4, recomputed=True)], ids=str)
@pytest.mark.parametrize(("heads", "queries", "classes"), [(1, 1, 2), (4, 1, 2), (3, 2, 3)])
def test_values_and_gradients_are_those_of_torch_s_attention(
    plan: ChunkPlan, heads: int, queries: int, classes: int
) -> None:
    assert_alike(config_of(heads, queries), classes, plan, log_prob_of)


def test_one_query_is_torch_s_multi_head_attention() -> None:
    model, (bag, *_) = model_of(config_of(4, 1), 2), bags()
    pooling, h = model.pooling, torch.relu(model.encoder.project(bag.instances))
    expected, weights = functional.multi_head_attention_forward(
        pooling.query[:, None], h[:, None], h[:, None], HIDDEN, 4, None, torch.zeros(3 * HIDDEN, dtype=h.dtype), None,
        None, False, 0.0, pooling.join.weight, pooling.join.bias, training=False, use_separate_proj_weight=True,
        q_proj_weight=torch.eye(HIDDEN, dtype=h.dtype), k_proj_weight=pooling.key.weight,
        v_proj_weight=pooling.value.weight,
    )  # fmt: skip
    output = model.predict_bags(pack([bag], [0]))
    torch.testing.assert_close(output.attention, weights[0, 0], atol=1e-9, rtol=0)
    torch.testing.assert_close(output.output[0, 1:], functional.logsigmoid(model.classifier(expected[0, 0])))


def test_scores_of_many_heads_are_no_column_of_attention() -> None:
    assert instance_columns([model_of(config_of(4, 2), 2)], bags()[0], 1, with_leave_one_out=False) == {}


def test_heads_divide_the_width_of_an_embedding() -> None:
    line = "pooling_heads: expected a divisor of hidden 30, got 4; allowed: 1, 2, 3, 5, 6, 10, 15, 30"
    with pytest.raises(InputError, match=line):
        TrainConfig(pooling="multi_head_attention", hidden=30)
    train = TrainConfig(pooling="attention", hidden=30)
    with pytest.raises(InputError, match=line):
        TuneConfig(poolings=("attention", "multi_head_attention"), train=train)
    assert TuneConfig(poolings=("multi_head_attention",), train=train, search=("hidden=16,32",)).train == train
