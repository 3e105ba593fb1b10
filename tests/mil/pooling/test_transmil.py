"""TransMIL beside torchmil's, beside a plain implementation of whole matrices, by hand; order, slides, memory."""

import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional
from torchmil.models import TransMIL

from milcore.cohort.manifest import Manifest, Slide
from milcore.config import SplitConfig, TrainConfig, TuneConfig
from milcore.errors import InputError, StoreError
from milcore.mil.bags.bags import Bags
from milcore.mil.bags.batch import Bag, pack
from milcore.mil.bags.load import load_bags
from milcore.mil.inference import predict_bags
from milcore.mil.model import MILModel, make_model
from milcore.mil.pooling.streaming import ChunkPlan
from milcore.mil.pooling.transmil import NystromAttention, PyramidPositions, TransformerPooling, squared
from milcore.store.slide_record import SlideMpp, SlideRecord
from milcore.store.store import PatchStore
from milcore.training.fit import fit
from milcore.training.run import prepare_run
from milcore.training.sweep import prepare_sweep
from tests.cohorts import write_features, write_store
from tests.mil.places import places_of
from tests.mil.pooling.test_streaming import WHOLE, WIDTH, chunks_of
from tests.mil.pooling.whole_bags import model_of

HEADS, LANDMARKS = 2, 3
CONFIG = TrainConfig(
    pooling="transmil", hidden=8, pooling_heads=HEADS, transmil_landmarks=LANDMARKS, precision="fp64", dropout=0.0
)
# slides of each bag: a square, one instance, no square; and two slides
SLIDES = ((9,), (1,), (22,), (7, 12))


def bags(slides: tuple[tuple[int, ...], ...] = SLIDES) -> list[Bag]:
    generator = torch.Generator().manual_seed(1)
    return [
        Bag(str(k), "", 0, torch.randn(sum(of_bag), WIDTH, generator=generator, dtype=torch.float64),
            places_of(sum(of_bag), of_bag))
        for k, of_bag in enumerate(slides)
    ]  # fmt: skip


def in_order(bag: Bag) -> list[Tensor]:
    """Rows of each slide in the order of (y, x)."""
    slides: dict[float, list[tuple[float, float, int]]] = {}
    for row, (slide, y, x) in enumerate(bag.places.tolist()):
        slides.setdefault(slide, []).append((y, x, row))
    return [bag.instances[[row for *_, row in sorted(slides[slide])]] for slide in sorted(slides)]


def plain_attention(layer: NystromAttention, x: Tensor, runs: list[int]) -> tuple[Tensor, Tensor]:
    """Output of all tokens, and the matrix of attention of each head, as in the formulas of the paper."""
    x = torch.cat([x.new_zeros(-len(x) % LANDMARKS, x.shape[1]), x])
    outputs, matrices = [], []
    width = x.shape[1] // HEADS
    q, k, v = (x @ layer.project.weight.t()).chunk(3, dim=1)
    heads = [[each[:, h * width : (h + 1) * width] for each in (q, k, v)] for h in range(HEADS)]
    seconds = []
    for own_q, own_k, _ in heads:
        of_q, of_k = (torch.stack([part.mean(0) for part in each.chunk(LANDMARKS)]) for each in (own_q, own_k))
        seconds.append(torch.softmax(of_q @ of_k.t() / math.sqrt(width), 1))
    scale = max(each.abs().sum(1).max() for each in seconds) * max(each.abs().sum(0).max() for each in seconds)
    for h, (own_q, own_k, own_v) in enumerate(heads):
        of_q, of_k = (torch.stack([part.mean(0) for part in each.chunk(LANDMARKS)]) for each in (own_q, own_k))
        z, eye = seconds[h].t() / scale, torch.eye(LANDMARKS, dtype=x.dtype)
        for _ in range(6):
            az = seconds[h] @ z
            z = 0.25 * z @ (13 * eye - az @ (15 * eye - az @ (7 * eye - az)))
        first = torch.softmax(own_q @ of_k.t() / math.sqrt(width), 1)
        third = torch.softmax(of_q @ own_k.t() / math.sqrt(width), 1)
        matrix = first @ z @ third
        begin, local = len(x) - sum(runs), []
        for run in runs:
            part = own_v[begin : begin + run]
            reach = [(i, j) for i in range(run) for j in range(run) if abs(i - j) <= 16]
            kernel = layer.local.weight[h, 0]
            toeplitz = x.new_zeros(run, run).index_put(
                tuple(torch.tensor(reach).t()), torch.stack([kernel[j - i + 16] for i, j in reach])
            )
            local.append(toeplitz @ part)
            begin += run
        outputs.append((matrix @ own_v)[-sum(runs) :] + torch.cat(local))
        matrices.append(matrix[-sum(runs) :, -sum(runs) :])
    return layer.join(torch.cat(outputs, 1)), torch.stack(matrices)


def plain_positions(layer: PyramidPositions, x: Tensor) -> Tensor:
    side = math.isqrt(len(x))
    grid = x.t().reshape(1, -1, side, side)
    return (grid + sum(conv(grid) for conv in layer.layers)).flatten(2)[0].t()


def plain(model: MILModel, bag: Bag) -> tuple[Tensor, Tensor]:
    """Log-probabilities of a bag, and the class token's attention to its instances in their order."""
    pooling, slides = model.pooling, [torch.relu(model.encoder.project(rows)) for rows in in_order(bag)]
    squares = []
    for rows in slides:
        side = math.ceil(math.sqrt(len(rows)))
        squares.append(torch.cat([rows, rows[: side**2 - len(rows)]]))
    runs = [1 + len(squares[0]), *map(len, squares[1:])]
    x = torch.cat([pooling.class_token, *squares])
    x = x + plain_attention(pooling.global_layer, pooling.norms[0](x), runs)[0]
    x = torch.cat([x[:1], *(plain_positions(pooling.positions, each) for each in x[1:].split([*map(len, squares)]))])
    added, matrices = plain_attention(pooling.last_layer, pooling.norms[1](x), runs)
    logit = model.classifier(pooling.norms[2](x + added)[0])
    of_tokens, weights = matrices[:, 0, 1:].mean(0), []
    for square, rows in zip(of_tokens.split([*map(len, squares)]), slides, strict=True):
        own = square.clamp_min(0.0)
        weights.append(own[: len(rows)] + functional.pad(own[len(rows) :], (0, 2 * len(rows) - len(own))))
    weight = torch.cat(weights)
    return functional.logsigmoid(torch.cat([-logit, logit])), weight / weight.sum()


@pytest.mark.parametrize("plan", [WHOLE, chunks_of(7, recomputed=False), chunks_of(4, recomputed=True)], ids=str)
@pytest.mark.parametrize("activation_mb", [100.0, 0.001], ids=["kept", "recomputed"])
def test_values_and_gradients_are_those_of_whole_matrices(plan: ChunkPlan, activation_mb: float) -> None:
    """Of chunks, of bags whose pooling is recomputed, of one slide and of several."""
    model, other = (model_of(CONFIG.model_copy(update={"activation_mb": activation_mb}), 2) for _ in range(2))
    log_prob = model(pack(bags(), range(len(SLIDES))), None, plan)
    expected = torch.stack([plain(other, bag)[0] for bag in bags()])
    torch.testing.assert_close(log_prob, expected, atol=1e-9, rtol=0)
    cotangent = torch.randn(expected.shape, generator=torch.Generator().manual_seed(3), dtype=expected.dtype)
    log_prob.backward(cotangent)
    expected.backward(cotangent)
    for (name, parameter), of_other in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, of_other.grad, atol=1e-9, rtol=1e-7, msg=name)


def test_attention_is_the_class_token_s_row_in_the_bag_s_own_order() -> None:
    model = model_of(CONFIG, 2)
    output = model.predict_bags(pack(bags(), range(len(SLIDES))))
    for bag, weights in zip(bags(), output.attention.split([sum(slides) for slides in SLIDES]), strict=True):
        order = np.lexsort(bag.places.t().numpy()[::-1])
        torch.testing.assert_close(weights[order], plain(model, bag)[1])


def torchmil_of(model: MILModel) -> TransMIL:
    """Their model with our weights."""
    embed = nn.Sequential(nn.Linear(WIDTH, 8), nn.ReLU())
    theirs = TransMIL((WIDTH,), att_dim=8, n_heads=HEADS, n_landmarks=LANDMARKS, feat_ext=embed).double()
    for name, layer in layers_of(model).items():
        theirs.get_submodule(name).load_state_dict(layer.state_dict())
    with torch.no_grad():
        theirs.cls_token.copy_(model.pooling.class_token[None])
    return theirs


def layers_of(model: MILModel) -> dict[str, nn.Module]:
    """Our layers by the names of theirs."""
    pooling = model.pooling
    return {
        "feat_ext.0": model.encoder.project, "classifier": model.classifier, "norm": pooling.norms[2],
        "layers.0.norm1": pooling.norms[0], "layers.1.norm1": pooling.norms[1],
        "layers.0.att_module.qkv_nn": pooling.global_layer.project,
        "layers.1.att_module.qkv_nn": pooling.last_layer.project,
        "pos_layer.proj": pooling.positions.layers[0], "pos_layer.proj1": pooling.positions.layers[1],
        "pos_layer.proj2": pooling.positions.layers[2],
    }  # fmt: skip


@pytest.mark.parametrize("instances", [16, 22])
def test_logit_attention_and_gradients_are_those_of_torchmil(instances: int) -> None:
    """Theirs (1.0.2) lacks the convolution of values and the projection after attention, made nothing in ours."""
    model, (bag,) = model_of(CONFIG, 2), bags(((instances,),))
    with torch.no_grad():
        for layer in (model.pooling.global_layer, model.pooling.last_layer):
            layer.local.weight.zero_()
            layer.join.weight.copy_(torch.eye(8))
            layer.join.bias.zero_()
    theirs, (rows,) = torchmil_of(model), in_order(bag)
    expected, attention = theirs(rows[None], return_att=True)
    log_prob = model(pack([bag], [0]), None)
    torch.testing.assert_close(log_prob[0, 1], functional.logsigmoid(expected[0]), atol=1e-5, rtol=0)
    log_prob[0, 1].backward()
    functional.logsigmoid(expected[0]).backward()
    for name, layer in layers_of(model).items():
        for own, other in zip(layer.parameters(), theirs.get_submodule(name).parameters(), strict=True):
            assert own.grad.abs().max() > 1e-6, name
            torch.testing.assert_close(own.grad, other.grad, atol=1e-5, rtol=0, msg=name)
    torch.testing.assert_close(model.pooling.class_token.grad, theirs.cls_token.grad[0], atol=1e-5, rtol=0)
    if instances == 16:  # of others theirs leaves out the second token of an instance
        order = np.lexsort(bag.places.t().numpy()[::-1])
        of_theirs = attention[0].clamp_min(0.0) / attention[0].clamp_min(0.0).sum()
        weights = model.predict_bags(pack([bag], [0])).attention
        torch.testing.assert_close(weights[order], of_theirs, atol=1e-5, rtol=0)


def test_the_order_of_rows_does_not_count_and_that_of_places_does() -> None:
    model, (bag,) = model_of(CONFIG, 2), bags(((7, 12),))
    order = torch.randperm(19, generator=torch.Generator().manual_seed(5))
    turned = Bag("x", "", 0, bag.instances[order], bag.places[order])
    moved = Bag("x", "", 0, bag.instances[order], bag.places)
    value, same, other = (model(pack([each], [0]), None) for each in (bag, turned, moved))
    torch.testing.assert_close(same, value, atol=1e-12, rtol=0)
    assert (other - value).abs().max() > 1e-4


def test_places_of_different_slides_are_no_neighbours() -> None:
    """A change in the second slide reaches the first by attention, not by PPEG, nor by the values' convolution."""
    torch.manual_seed(0)
    pooling = model_of(CONFIG, 2).pooling
    values = torch.randn(10, 8, dtype=torch.float64)
    changed = torch.cat([values[:4], torch.randn(6, 8, dtype=torch.float64)])
    with torch.no_grad():
        pooling.global_layer.join.weight.zero_()  # no attention before PPEG
    of_first, of_changed = (pooling._tokens(each, [4, 6])[0] for each in (values, changed))
    torch.testing.assert_close(of_first[:5], of_changed[:5], atol=0, rtol=0)
    assert (of_first[5:] - of_changed[5:]).abs().min(1).values.max() > 1e-3

    def local(layer: NystromAttention, tokens: Tensor, runs: list[int]) -> Tensor:
        whole, weight = layer(tokens, runs), layer.local.weight.detach().clone()
        with torch.no_grad():
            layer.local.weight.zero_()
        without = layer(tokens, runs)
        with torch.no_grad():
            layer.local.weight.copy_(weight)
        return whole - without

    first, second = (local(pooling.last_layer, each, [4, 6])[:4] for each in (values, changed))
    torch.testing.assert_close(first, second, atol=1e-12, rtol=0)
    first, second = (local(pooling.last_layer, each, [10])[:4] for each in (values, changed))
    assert (first - second).abs().max() > 1e-3


def test_the_first_rows_fill_the_square_by_hand() -> None:
    assert squared(torch.arange(5)).tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3]
    assert [len(squared(torch.arange(n))) for n in (1, 2, 3, 4, 9, 10)] == [1, 4, 4, 4, 9, 16]


def test_a_square_of_one_sees_the_centres_of_the_kernels_by_hand() -> None:
    """2 (1 + 7 + 5 + 3) + 3 biases of 1: kernels whose centre is their size and whose rest is not read."""
    layer = PyramidPositions(1).double()
    with torch.no_grad():
        for conv in layer.layers:
            conv.weight.fill_(99.0)
            conv.weight[0, 0, conv.kernel_size[0] // 2, conv.kernel_size[0] // 2] = conv.kernel_size[0]
            conv.bias.fill_(1.0)
    assert layer(torch.tensor([[2.0]], dtype=torch.float64)).item() == pytest.approx(2 * (1 + 7 + 5 + 3) + 3)


def test_a_bag_of_one_has_all_attention() -> None:
    output = model_of(CONFIG, 2).predict_bags(pack(bags(((1,),)), [0]))
    assert output.attention.tolist() == [1.0]
    assert torch.isfinite(output.output).all()


@pytest.mark.parametrize(("instances", "width", "heads", "landmarks"), [(3_000, 32, 2, 16), (40, 8, 4, 128)])
def test_memory_is_bounded_by_the_formula(instances: int, width: int, heads: int, landmarks: int) -> None:
    """Of many instances by the width, of many landmarks by their square; at most twice what is kept."""
    config = TrainConfig(pooling="transmil", hidden=width, pooling_heads=heads, transmil_landmarks=landmarks)
    pooling = make_model(config, WIDTH, 2).pooling
    storages: dict[int, int] = {}

    def record(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with saved_tensors_hooks(record, lambda tensor: tensor):
        pooled = pooling.pool(torch.randn(instances, width), [instances])
    kept = sum(storages.values())
    bound = pooling.pool_bytes([instances], 4, with_gradient=True)
    assert pooled.requires_grad
    assert kept <= bound <= 2 * kept


def test_a_bag_that_does_not_fit_is_refused_in_a_line_in_training_and_in_prediction() -> None:
    config = {"pooling": "transmil", "hidden": 8, "transmil_landmarks": 4, "epochs": 1, "patience": 1}
    arrays = [np.random.default_rng(k).normal(size=(n, 5)) for k, n in enumerate((9, 400, 12, 30))]
    places = [places_of(len(array))[:, 1:] for array in arrays]
    data = Bags.from_arrays(arrays, [0, 1, 0, 1], places=places)
    line = r"activation_mb: expected at least \d for bag 'bag-0001' of 400 instances, which transmil pools as a whole"
    with pytest.raises(InputError, match=line):
        fit(data, **config, activation_mb=0.1)
    model = fit(data, **config, activation_mb=0.1, instances_per_bag=30)
    with pytest.raises(InputError, match=line):
        predict_bags(model, data)
    assert len(predict_bags(model, data, [0, 2])) == 2


def test_bags_without_places_and_places_of_another_shape_are_refused_in_a_line() -> None:
    arrays = [np.zeros((3, 2)), np.ones((2, 2))]
    with pytest.raises(InputError, match=r"pooling: expected places of the instances .* places in Bags.from_arrays"):
        fit(Bags.from_arrays(arrays, [0, 1]), pooling="transmil", hidden=8, epochs=1)
    with pytest.raises(InputError, match=r"places: bag 1: expected shape \(2, 2\), got \(3, 2\); allowed: x and y of"):
        Bags.from_arrays(arrays, [0, 1], places=[np.zeros((3, 2))] * 2)
    with pytest.raises(InputError, match=r"places: bag 0: expected finite numbers, got others"):
        Bags.from_arrays(arrays[:1], [0], places=[np.full((3, 2), np.nan)])


def test_a_store_without_coords_is_refused_in_a_line(tmp_path: Path) -> None:
    uri = str(tmp_path / "store")
    write_features(write_store(uri))
    store = PatchStore(uri)
    config = TrainConfig(pooling="transmil", hidden=8, features="mean_rgb", epochs=1)
    prepare_run(uri, str(tmp_path / "run"), config, SplitConfig())
    rows = store.slide("s00").features("mean_rgb").read(0, 6)
    with store.writer(SlideRecord("s00", patches=6), None, "none", 90):
        pass  # a slide without coords
    store.slide("s00").write_features("mean_rgb", rows, {})
    store.rebuild_catalogue()
    line = r"pooling: expected slides with coords, which transmil reads, got 1 without \(s00 …\); allowed: stores of"
    with pytest.raises(StoreError, match=line):
        prepare_run(uri, str(tmp_path / "other"), config, SplitConfig())
    sweep = TuneConfig(poolings=("max", "transmil"), train=TrainConfig(features="mean_rgb"))
    with pytest.raises(StoreError, match=line):
        prepare_sweep(uri, str(tmp_path / "sweep"), sweep, SplitConfig())


def test_places_of_a_store_are_um_slide_by_slide(tmp_path: Path) -> None:
    """Of a patient with two slides: number of the slide, y and x; in level-0 px where the scale is unknown."""
    store = PatchStore(str(tmp_path / "store"))
    store.write_manifest(Manifest(tuple(Slide(name, "", 0, "p", "", None, None, None) for name in "ab"), ("0", "1")))
    for name, mpp in (("a", SlideMpp(0.25, 0.5, 0.5, "slide")), ("b", None)):
        record = SlideRecord(name, patch_size_level0=8.0, size_level0=(80, 80), mpp=mpp)
        with store.writer(record, 8, "none", 90) as writer:
            for x, y in ((16, 8), (0, 40)):
                writer.append(np.zeros((8, 8, 3), np.uint8), x, y, 1.0)
    write_features(store)
    rows = {"slide_id": ["b", "a"], "patient_id": ["p", "p"], "label": [0, 0], "split": ["train", "train"]}
    config = TrainConfig(features="mean_rgb", bag="patient")
    (bag,) = load_bags(store.uri, config.model_copy(update={"pooling": "transmil"}), pa.table(rows))
    assert bag.places.tolist() == [[0.0, 8.0, 16.0], [0.0, 40.0, 0.0], [1.0, 2.0, 4.0], [1.0, 10.0, 0.0]]
    assert load_bags(store.uri, config, pa.table(rows))[0].places is None
    assert load_bags(store.uri, config, pa.table(rows), ("max", "transmil"))[0].places is not None


def test_the_pooling_of_the_table_is_this_one_with_its_settings() -> None:
    pooling = make_model(CONFIG, WIDTH, 2).pooling
    assert isinstance(pooling, TransformerPooling)
    assert (pooling.last_layer.heads, pooling.last_layer.landmarks) == (HEADS, LANDMARKS)
    with pytest.raises(InputError, match="pooling_heads: expected a divisor of hidden 9, got 4"):
        TrainConfig(pooling="transmil", hidden=9)
