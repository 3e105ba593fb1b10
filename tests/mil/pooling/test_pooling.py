"""The contract every pooling of the table keeps, at every level it is defined on, and values worked by hand."""

import functools
import itertools
import math
import re
from pathlib import Path
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from milcore.config import (
    POOLING_LEVELS,
    POOLING_SCOPES,
    SETTING_READERS,
    TARGETS,
    TARGETS_OF_COLUMNS,
    PoolingName,
    TrainConfig,
    TuneConfig,
    parse_config,
    without_unread,
)
from milcore.errors import InputError
from milcore.mil.bags.batch import Bag, pack
from milcore.mil.bags.segments import Segments
from milcore.mil.model import make_model
from milcore.mil.pooling.pooling import POOLINGS
from milcore.mil.pooling.protocol import (
    Pooling,
    PoolingShape,
    Summary,
    TieredPooling,
    TwoPassPooling,
    TwoStreamPooling,
    WholeBagPooling,
)
from tests.mil.places import placed

WIDTH = 5
FLOAT = torch.float64


SETTINGS = {
    "lse_sharpness": 5.0, "noisy_and_slope": 10.0, "topk_instances": 2.0, "pooling_heads": 1, "pooling_queries": 2,
    "clam_instances": 2, "clam_loss_weight": 0.3, "transmil_landmarks": 3, "dtfd_groups": 2,
    "dtfd_distillation": "afs",
}  # fmt: skip


def make(name: str, width: int = WIDTH, attention_width: int = 4, heads: int = 1, classes: int = 1) -> Pooling:
    return POOLINGS[name](PoolingShape(width, attention_width, heads, classes, **SETTINGS)).to(FLOAT)


class Sigma:
    """A pooling at one level, as a function of embeddings; at instance level the logits are their first columns."""

    def __init__(self, name: str, level: str, heads: int = 1, classes: int = 1) -> None:
        self.pooling = make(name, heads=heads, classes=classes)
        self.level, self.classes = level, classes

    def values(self, keys: Tensor) -> Tensor:
        return keys if self.level == "embedding" else self.pooling.instance_values(keys[:, : self.classes])

    def first(self, keys: Tensor, segments: Segments) -> Summary:
        """Summary of the first of two passes; empty where one is enough."""
        if not isinstance(self.pooling, TwoPassPooling):
            return ()
        return self.pooling.first.lift(self.pooling.scorer(FLOAT)(keys), self.values(keys), segments)

    def scores(self, keys: Tensor, segments: Segments) -> Tensor:
        """Scores, with the number of the pseudo-bag by that of the instance where there are such."""
        scores = self.pooling.scorer(FLOAT)(keys)
        if not isinstance(self.pooling, TieredPooling):
            return scores
        return torch.cat([scores, (segments.position[:, None] % self.pooling.groups).to(FLOAT)], dim=1)

    def taken(self, keys: Tensor, segments: Segments, first: Summary) -> tuple[Tensor, Tensor]:
        scores, values = self.scores(keys, segments), self.values(keys)
        if not isinstance(self.pooling, TwoPassPooling):
            return scores, values
        return self.pooling.first.condition(scores, values, first, segments)

    def lift(self, keys: Tensor, segments: Segments, first: Summary | None = None) -> Summary:
        """Summary of instances, after that of the first pass over whole bags, which these are by default."""
        first = self.first(keys, segments) if first is None else first
        return self.pooling.lift(*self.taken(keys, segments, first), segments)

    def read(self, summary: Summary) -> Tensor:
        pooled = self.pooling.finish(summary)
        if isinstance(self.pooling, TwoStreamPooling):
            return torch.cat([pooled, self.pooling.stream_logit(summary)], dim=1)
        if isinstance(self.pooling, TieredPooling):
            logits, exists = self.pooling.tier_logits(summary)
            return torch.cat([pooled, (logits * exists[..., None]).flatten(1)], dim=1)
        return pooled if self.level == "embedding" else self.pooling.instance_log_prob(pooled)

    def permuted(self, keys: Tensor) -> Tensor:
        """A bag in another order, its instances with their numbers."""
        order = torch.randperm(len(keys))
        return self.read(self.lift(keys[order], Segments.whole([len(keys)])._replace(position=order)))

    def __call__(self, keys: Tensor, lengths: list[int]) -> Tensor:
        if isinstance(self.pooling, WholeBagPooling):
            return torch.stack([self.pooling.pool(bag, [len(bag)]) for bag in keys.split(lengths)])
        return self.read(self.lift(keys, Segments.whole(lengths)))

    def weights(self, keys: Tensor, lengths: list[int]) -> Tensor | None:
        if isinstance(self.pooling, WholeBagPooling):
            return torch.cat([self.pooling.pool_and_weigh(bag, [len(bag)])[1] for bag in keys.split(lengths)])[:, None]
        segments = Segments.whole(lengths)
        taken = self.taken(keys, segments, self.first(keys, segments))
        return self.pooling.weights(*taken, self.lift(keys, segments), segments)


ROWS = [(name, level) for name, levels in POOLING_LEVELS.items() for level in levels]
# the order of instances counts in the others, and no parts of them merge: test_transmil.py
MONOIDS = [row for row in ROWS if not POOLING_SCOPES[row[0]].is_placed]
SHAPES = {"two classes": (1, 1), "three classes": (1, 3), "three classes, three heads": (3, 3)}


@pytest.fixture(params=ROWS, ids="-".join)
def row(request: pytest.FixtureRequest) -> tuple[str, str]:
    torch.manual_seed(1)
    return request.param


@pytest.fixture(params=SHAPES)
def sigma(request: pytest.FixtureRequest, row: tuple[str, str]) -> Sigma:
    return Sigma(*row, *SHAPES[request.param])


@pytest.fixture(params=itertools.product(MONOIDS, SHAPES), ids=lambda param: "-".join((*param[0], param[1])))
def monoid(request: pytest.FixtureRequest) -> Sigma:
    torch.manual_seed(1)
    row, shape = request.param
    return Sigma(*row, *SHAPES[shape])


def embeddings(rows: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(rows, WIDTH, dtype=FLOAT)


def part_of(segments: Segments, rows: slice) -> Segments:
    """Some rows of one bag."""
    return Segments.whole([len(segments.position[rows])])._replace(
        position=segments.position[rows], longest=segments.longest
    )


def first_of_parts(sigma: Sigma, parts: list[tuple[Tensor, Segments]]) -> Summary:
    """Summary of the first pass over all parts, merged from the last to the first."""
    firsts = [sigma.first(*part) for part in reversed(parts)]
    return functools.reduce(sigma.pooling.first.merge, firsts) if isinstance(sigma.pooling, TwoPassPooling) else ()


def test_config_names_are_the_table_s_keys() -> None:
    assert set(get_args(PoolingName)) == set(POOLINGS) == set(POOLING_SCOPES)


@pytest.mark.parametrize("name", POOLING_LEVELS)
def test_a_level_that_a_pooling_is_not_defined_on_is_refused(name: str) -> None:
    for level in {"instance", "embedding"} - set(POOLING_LEVELS[name]):
        own = POOLING_LEVELS[name][0]
        line = f"level: expected level {own} with pooling {name}, got level {level}; allowed: level {own}"
        with pytest.raises(InputError, match=line):
            parse_config(TrainConfig, {"pooling": name, "level": level})
        with pytest.raises(InputError, match=line.replace("level", "poolings", 1)):
            TuneConfig(poolings=(name,), train=TrainConfig(level=level))
    for level in POOLING_LEVELS[name]:
        assert TrainConfig(pooling=name, level=level).pooling == name


@pytest.mark.parametrize("name", POOLING_SCOPES)
def test_a_target_that_a_pooling_does_not_serve_is_refused(name: str) -> None:
    for target in set(TARGETS) - set(POOLING_SCOPES[name].targets):
        columns = {column: column for column, targets in TARGETS_OF_COLUMNS.items() if target in targets}
        line = f"expected a pooling that serves target {target}, got {name}; allowed: max, mean"
        with pytest.raises(InputError, match=f"pooling: {line}"):
            parse_config(TrainConfig, {"pooling": name, "target": target, **columns})
        with pytest.raises(InputError, match=f"poolings: {line}"):
            TuneConfig(poolings=(name,), train=TrainConfig(target=target, **columns))


OTHER_VALUES = {
    "lse_sharpness": 2.0, "noisy_and_slope": 3.0, "topk_instances": 2.0, "attention_hidden": 4,
    "attention_heads": "per_class", "pooling_heads": 2, "pooling_queries": 2, "clam_instances": 2,
    "clam_loss_weight": 0.5, "transmil_landmarks": 3, "dtfd_groups": 2, "dtfd_distillation": "maxmins",
}  # fmt: skip


@pytest.mark.parametrize("name", POOLING_SCOPES)
def test_settings_of_a_pooling_are_those_that_change_what_it_learns(name: str) -> None:
    """The column ``settings`` of the table, beside the gradients of a model with each setting changed."""
    few = {"pooling": name, "level": POOLING_LEVELS[name][0], "hidden": 8, "dropout": 0.0, "transmil_landmarks": 4}
    config = TrainConfig(**without_unread(few))
    generator = torch.Generator().manual_seed(0)
    bags = [Bag(str(n), "", n % 3, torch.randn(n, WIDTH, generator=generator)) for n in (9, 14, 1)]
    batch = pack([placed(bag) for bag in bags], range(3))

    def gradients(**changed: object) -> list[Tensor]:
        model = make_model(config.model_copy(update=changed), WIDTH, classes=3)
        model.losses(batch, None, lambda log_prob: -log_prob.gather(1, batch.labels[:, None])[:, 0]).sum().backward()
        return [parameter.grad for parameter in model.parameters()]

    def alike(a: list[Tensor], b: list[Tensor]) -> bool:
        return all(torch.equal(*pair) for pair in zip(a, b, strict=True))

    own = gradients()
    read = {setting for setting, value in OTHER_VALUES.items() if not alike(own, gradients(**{setting: value}))}
    assert read == set(POOLING_SCOPES[name].settings)
    assert set(OTHER_VALUES) == set(SETTING_READERS)


def test_the_page_has_the_poolings_that_read_each_setting() -> None:
    lines = (Path(__file__).parents[3] / "docs/pooling.md").read_text().splitlines()
    begin = lines.index("| setting | poolings that read it |") + 2
    rows = itertools.takewhile(lambda line: line.startswith("|"), lines[begin:])
    cells = [[re.findall(r"`(\w+)`", cell) for cell in row.strip("|").split("|")] for row in rows]
    assert {name: tuple(readers) for names, readers in cells for name in names} == SETTING_READERS


@pytest.mark.parametrize(("setting", "value"), OTHER_VALUES.items())
def test_a_setting_that_no_pooling_reads_is_refused_in_a_line_naming_those_that_do(setting: str, value: object) -> None:
    readers, default = SETTING_READERS[setting], TrainConfig.model_fields[setting].default
    line = f"{setting}: expected the default {default} with pooling"
    allowed = f"got {value}; allowed: others with pooling {', '.join(readers)}; drop it, or take one of these"
    other = next(name for name in POOLING_SCOPES if name not in readers and "embedding" in POOLING_LEVELS[name])
    with pytest.raises(InputError) as raised:
        parse_config(TrainConfig, {"pooling": other, setting: value})
    assert str(raised.value) == f"{line} {other}, which does not read it, {allowed}"
    with pytest.raises(InputError, match=f"^{line} max, {other}, which does not read it, got"):
        TuneConfig(poolings=("max", other), train={setting: value})
    line = f"^search: expected settings that one of the poolings max reads, got {setting}; allowed: {setting} with"
    with pytest.raises(InputError, match=line):
        TuneConfig(poolings=("max",), search=(f"{setting}=1,2",))
    assert getattr(TrainConfig(pooling=other, **{setting: default}), setting) == default


@pytest.mark.parametrize(("setting", "value"), OTHER_VALUES.items())
def test_a_sweep_takes_a_setting_that_one_of_its_poolings_reads(setting: str, value: object) -> None:
    reader = SETTING_READERS[setting][0]
    train = {"level": POOLING_LEVELS[reader][0], "hidden": 8, setting: value}
    sweep = TuneConfig(poolings=("max", reader) if train["level"] in POOLING_LEVELS["max"] else (reader,), train=train)
    assert getattr(sweep.train, setting) == value
    assert TuneConfig(poolings=sweep.poolings, train=train, search=(f"{setting}=1,2",)).drawn == (setting,)
    assert parse_config(TuneConfig, sweep.model_dump(mode="json")) == sweep


@settings(max_examples=40)
@given(
    lengths=st.lists(st.integers(1, 90), min_size=1, max_size=40),
    seed=st.integers(0, 1000),
    row=st.sampled_from(ROWS),
    shape=st.sampled_from(sorted(SHAPES)),
)
def test_packed_equals_each_bag_alone_in_any_order_with_its_gradient(
    lengths: list[int], seed: int, row: tuple[str, str], shape: str
) -> None:
    """Few bags and many take different paths through the sums; both are drawn."""
    torch.manual_seed(seed)
    sigma = Sigma(*row, *SHAPES[shape])
    packed, alone = (embeddings(sum(lengths)).requires_grad_() for _ in range(2))
    alone.data.copy_(packed.data)
    together = sigma(packed, lengths)
    is_ordered = isinstance(sigma.pooling, WholeBagPooling)
    bags = [(sigma(bag, [len(bag)]) if is_ordered else sigma.permuted(bag))[0] for bag in alone.split(lengths)]
    torch.testing.assert_close(torch.stack(bags), together)
    cotangent = torch.randn_like(together)
    together.backward(cotangent)
    torch.stack(bags).backward(cotangent)
    torch.testing.assert_close(alone.grad, packed.grad)


def test_summaries_of_parts_merge_in_any_order_to_that_of_the_whole(monoid: Sigma) -> None:
    sigma = monoid
    keys, whole = embeddings(9), Segments.whole([9])
    parts = [(keys[rows], part_of(whole, rows)) for rows in (slice(0, 2), slice(2, 3), slice(3, 9))]
    first = first_of_parts(sigma, parts)
    a, b, c = (sigma.lift(*part, first) for part in parts)
    merge = sigma.pooling.merge
    expected = sigma(keys, [9])
    for merged in (merge(merge(a, b), c), merge(a, merge(b, c)), merge(c, merge(b, a))):
        torch.testing.assert_close(sigma.read(merged), expected)


def test_the_gradient_through_merged_parts_is_that_of_the_whole(monoid: Sigma) -> None:
    sigma = monoid
    keys, parts = (embeddings(8).requires_grad_() for _ in range(2))
    parts.data.copy_(keys.data)
    segments = Segments.whole([8])
    halves = [(parts[rows], part_of(segments, rows)) for rows in (slice(5), slice(5, 8))]
    first = first_of_parts(sigma, halves)
    merged = sigma.pooling.merge(*(sigma.lift(*half, first) for half in halves))
    expected, of_parts = sigma(keys, [8]), sigma.read(merged)
    cotangent = torch.randn_like(expected)
    expected.backward(cotangent)
    of_parts.backward(cotangent)
    torch.testing.assert_close(parts.grad, keys.grad)


@pytest.mark.parametrize("row", MONOIDS, ids="-".join)
def test_a_bag_of_one_pools_to_its_instance(row: tuple[str, str]) -> None:
    """theta = p, and an embedding to itself; gem clamps, noisy-and bends p, but keeps 0, 1 and its own threshold."""
    sigma, keys = Sigma(*row), embeddings(1)
    if row[0] == "gem":
        torch.testing.assert_close(sigma(keys, [1]), keys.clamp_min(1e-6))
    elif row[0] == "additive":
        torch.testing.assert_close(sigma(keys, [1]), torch.relu(sigma.pooling.content(keys)))
    elif row[0] == "dsmil":
        logit = sigma.pooling.instance_classifier(keys)
        torch.testing.assert_close(sigma(keys, [1]), torch.cat([keys, logit], dim=1))
    elif row[0] == "dtfd":
        logits = torch.cat([sigma.pooling.group_classifier(keys), torch.zeros(1, 1)], dim=1)  # no second pseudo-bag
        torch.testing.assert_close(sigma(keys, [1]), torch.cat([keys, logits], dim=1))
    elif row[0] == "multi_head_attention":
        values = sigma.pooling.value(keys).repeat(1, 2)  # of both queries
        torch.testing.assert_close(sigma(keys, [1]), sigma.pooling.join(values))
    elif row[1] == "embedding":
        torch.testing.assert_close(sigma(keys, [1]), keys)
    elif row[0] != "noisy_and":
        p = torch.sigmoid(keys[0, 0]).item()
        assert sigma(keys, [1]).exp().flatten().tolist() == pytest.approx([1 - p, p])


def test_probabilities_sum_to_one(row: tuple[str, str]) -> None:
    if row[1] == "instance":
        sigma = Sigma(*row, heads=1, classes=3)
        probabilities = sigma(embeddings(7, scale=3.0), [2, 4, 1]).exp()
        torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(3, 3, dtype=FLOAT))


def test_weights_sum_to_one_in_every_bag_or_are_not_defined(sigma: Sigma, row: tuple[str, str]) -> None:
    weights = sigma.weights(embeddings(7), [2, 4, 1])
    if row[0] in ("noisy_or", "noisy_and"):
        assert weights is None
    else:
        sums = torch.stack([of_bag.sum(dim=0) for of_bag in weights.split([2, 4, 1])])
        torch.testing.assert_close(sums, torch.ones_like(sums))


@pytest.mark.parametrize("extreme", [1e4, -1e4])
def test_extreme_values_stay_finite_with_their_gradients(sigma: Sigma, extreme: float) -> None:
    keys = torch.full((3, WIDTH), extreme, dtype=FLOAT, requires_grad=True)
    pooled = sigma(keys, [3])
    assert torch.isfinite(pooled).all()
    if sigma.level == "instance":
        assert pooled.min() >= math.log(1e-7) - 1e-9
    pooled.sum().backward()
    assert torch.isfinite(keys.grad).all()


def test_gradients_are_those_of_finite_differences(sigma: Sigma) -> None:
    keys = embeddings(6).requires_grad_()
    is_large = isinstance(sigma.pooling, WholeBagPooling)  # along a drawn direction
    assert torch.autograd.gradcheck(lambda k: sigma(k, [2, 1, 3]), (keys,), fast_mode=is_large)


def test_gradients_of_parameters_are_those_of_finite_differences(sigma: Sigma) -> None:
    keys, parameters = embeddings(6), tuple(sigma.pooling.parameters())
    if parameters:
        # of many parameters along a drawn direction
        is_large = isinstance(sigma.pooling, WholeBagPooling)
        assert torch.autograd.gradcheck(lambda *_: sigma(keys, [2, 1, 3]), parameters, fast_mode=is_large)


def test_half_precision_sums_are_accumulated_in_full() -> None:
    """4,096 ones: a running sum in bf16 would stop at 256."""
    ones = torch.ones(4096, 2, dtype=torch.bfloat16)
    for name in ("mean", "attention"):
        pooling = POOLINGS[name](PoolingShape(2, 2, 1, 1, **SETTINGS))
        pooled = pooling.finish(pooling.lift(pooling.scorer(torch.bfloat16)(ones), ones, Segments.whole([4096])))
        assert pooled.dtype == torch.float32
        torch.testing.assert_close(pooled, torch.ones(1, 2), atol=1e-2, rtol=0)


def at_embedding_level(name: str, keys: Tensor, lengths: list[int]) -> list[list[float]]:
    pooling = make(name, width=keys.shape[1])
    return pooling.finish(pooling.lift(pooling.scorer(FLOAT)(keys), keys, Segments.whole(lengths))).tolist()


def test_mean_and_max_by_hand() -> None:
    keys = torch.tensor([[1.0, 5.0], [3.0, 1.0], [7.0, 7.0]], dtype=FLOAT)
    assert at_embedding_level("mean", keys, [2, 1]) == [[2.0, 3.0], [7.0, 7.0]]
    assert at_embedding_level("max", keys, [2, 1]) == [[3.0, 5.0], [7.0, 7.0]]


def test_log_sum_exp_by_hand() -> None:
    """r = 5, v = 0 and ln(3) / 5: (1/5) ln((1 + 3) / 2) = ln(2) / 5."""
    keys = torch.tensor([[0.0], [math.log(3.0) / 5]], dtype=FLOAT)
    assert at_embedding_level("lse", keys, [2])[0] == pytest.approx([math.log(2.0) / 5])


def test_the_first_of_equal_values_wins_the_maximum_and_its_gradient() -> None:
    keys = torch.tensor([[2.0], [4.0], [4.0]], dtype=FLOAT, requires_grad=True)
    pooling, whole = make("max", width=1), Segments.whole([3])
    first, last = (
        pooling.lift(keys[rows, :0], keys[rows], part_of(whole, rows)) for rows in (slice(0, 2), slice(2, 3))
    )
    value, position = pooling.merge(last, first)
    value.sum().backward()
    assert position.tolist() == [[1]]
    assert keys.grad.tolist() == [[0.0], [1.0], [0.0]]


def test_instance_level_probabilities_by_hand() -> None:
    """Two instances, p = 0.8 and p = 0.5."""
    logit = torch.tensor([[math.log(4.0)], [0.0]], dtype=FLOAT)
    s = torch.sigmoid(torch.tensor([10 * (0.65 - 0.5), -5.0, 5.0], dtype=FLOAT)).tolist()
    expected = {
        "mean": 0.65,
        "max": 0.8,
        "lse": math.log((math.exp(5 * 0.8) + math.exp(5 * 0.5)) / 2) / 5,
        "noisy_or": 1 - 0.2 * 0.5,
        "noisy_and": (s[0] - s[1]) / (s[2] - s[1]),
    }
    for name, theta in expected.items():
        pooling = make(name, width=1)
        summary = pooling.lift(logit[:, :0], pooling.instance_values(logit), Segments.whole([2]))
        log_prob = pooling.instance_log_prob(pooling.finish(summary))
        assert log_prob.exp()[0, :, 0].tolist() == pytest.approx([1 - theta, theta]), name


@pytest.mark.parametrize(("name", "gate"), [("attention", 1.0), ("gated_attention", 0.5)])
def test_attention_weights_by_hand(name: str, gate: float) -> None:
    """V = 1, w = 1, U = 0: the scores of h = 0 and h = 1 are 0 and tanh(1) (halved by the gate's sigmoid(0))."""
    pooling = make(name, width=1, attention_width=1)
    with torch.no_grad():
        for parameter in pooling.parameters():
            parameter.fill_(0.0)
        pooling.attention.content.weight.fill_(1.0)
        pooling.attention.score.weight.fill_(1.0)
    keys = torch.tensor([[0.0], [1.0]], dtype=FLOAT)
    expected = math.exp(gate * math.tanh(1.0)) / (1.0 + math.exp(gate * math.tanh(1.0)))
    pooled = pooling.finish(pooling.lift(pooling.scorer(FLOAT)(keys), keys, Segments.whole([2])))
    assert pooled.item() == pytest.approx(expected)


def test_a_head_per_class_pools_for_its_class_only() -> None:
    """Two heads over p = (0.9, 0.1) and (0.2, 0.6): head 0 looks at the first instance, head 1 at the second."""
    pooling = make("attention", heads=2, classes=2)
    p = torch.tensor([[0.9, 0.1], [0.2, 0.6]], dtype=FLOAT)
    scores = torch.tensor([[50.0, -50.0], [-50.0, 50.0]], dtype=FLOAT)
    summary = pooling.lift(scores, pooling.instance_values(torch.logit(p)), Segments.whole([2]))
    assert pooling.instance_log_prob(pooling.finish(summary)).exp()[0, 1].tolist() == pytest.approx([0.9, 0.6])


@pytest.mark.parametrize("name", ["attention", "gated_attention"])
def test_the_score_has_no_bias(name: str) -> None:
    """A bias before the softmax has an exactly zero gradient that Adam would amplify."""
    assert make(name).attention.score.bias is None
