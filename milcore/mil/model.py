"""MIL model of encoder f, pooling sigma and classifier g over ragged batches.

``theta(X) = g(sigma({f(x)}))``. At embedding level the classifier reads the pooled embedding; at instance level it
scores each instance and the pooling acts on the scores' probabilities. Two classes share one logit. With more, each
class has its own; at instance level class c then has ``theta_c``, and the bag's probabilities are the softmax of their
log-odds. Source: Ilse, Tomczak, Welling 2018, arXiv 1802.04712, sections 2.1 and 2.2.

A batch is computed on in chunks, which are recomputed in the backward pass where its activations exceed the budget.
Products are taken in the precision of the config by weights that are cast once per pass; bags are summed in at least
fp32.

Axes: bag, class, instance, key (embedding width), head, value.
"""

import math
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from milcore.config import MAX_EPOCHS, TrainConfig
from milcore.errors import InputError
from milcore.mil.augmentation import augment
from milcore.mil.bags.bags import BagEntry
from milcore.mil.bags.batch import Bag, BagBatch, Chunk, pack
from milcore.mil.bags.segments import Segments, at_least_fp32, segment_sum
from milcore.mil.dropout import Dropout
from milcore.mil.instance_encoders.protocol import InstanceEncoder
from milcore.mil.instance_encoders.table import trainable_encoder
from milcore.mil.memory import activation_mb
from milcore.mil.pooling.additive import AdditivePooling
from milcore.mil.pooling.auxiliary import AUXILIARY_LOSSES, ProductMonoid
from milcore.mil.pooling.dtfd import pseudo_bags
from milcore.mil.pooling.pooling import LOGIT_PER_CLASS, POOLINGS
from milcore.mil.pooling.probability import log_sigmoids
from milcore.mil.pooling.protocol import (
    InstancePooling,
    Monoid,
    Pooling,
    PoolingShape,
    Summary,
    TieredPooling,
    TwoPassPooling,
    TwoStreamPooling,
    WholeBagPooling,
)
from milcore.mil.pooling.streaming import ChunkPlan, pool_batch, pool_first
from milcore.mil.pooling.whole_bags import WholeBags, whole_bags
from milcore.mil.targets import MODEL_TARGETS

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp64": torch.float64}
PROBE_INSTANCES = 64
GPU_CHUNKS = 16
# initial weights are drawn from torch's global generator, which all threads share
_GENERATOR_LOCK = threading.Lock()

LossOfBags = Callable[[Float[Tensor, "bag output"]], Float[Tensor, " bag"]]


class BagOutput(NamedTuple):
    """Prediction and attention of a batch of bags.

    Args:
        output: of the target: log-probabilities of classes, the log hazard ratio, logits of hazards, or the
            standardised value.
        attention: weight of each instance; weights sum to 1 in every bag.
    """

    output: Float[Tensor, "bag output"]
    attention: Float[Tensor, " instance"]


class LiftedChunk(NamedTuple):
    """Instances of a chunk as the pooling takes them.

    Args:
        chunk: the instances.
        scores: of attention, before the softmax.
        values: to pool.
        logit: of each class; no column at embedding level.
    """

    chunk: Chunk
    scores: Float[Tensor, "instance head"]
    values: Float[Tensor, "instance value"]
    logit: Float[Tensor, "instance class"]

    def summary(self, monoid: Monoid) -> Summary:
        """Summaries of the chunk's bags."""
        return monoid.lift(self.scores, self.values, self.chunk.segments)

    def rows_of(self, summary: Summary) -> Summary:
        """The chunk's bags of a summary of the batch."""
        bags = slice(self.chunk.first_bag, self.chunk.first_bag + self.chunk.segments.bags)
        return tuple(tensor[bags] for tensor in summary)


class MILModel(nn.Module):
    """Instance encoder, MIL pooling and bag classifier.

    Args:
        config: widths, pooling, level, precision and memory.
        width: feature width of frozen features; not read when the config names an encoder.
        classes: at least 2.
    """

    def __init__(self, config: TrainConfig, width: int, classes: int) -> None:
        super().__init__()
        self.target = MODEL_TARGETS[config.target]
        logits = classes if config.pooling in LOGIT_PER_CLASS else self.target.logits(classes, config)
        self.level = config.level
        self.outputs = self.target.width(classes, config)
        self.hidden = config.hidden
        self.dropout = config.dropout
        self.seed = config.seed
        self.dtype = DTYPES[config.precision]
        self.activation_bytes = int(activation_mb(config) * 1e6)
        self.augment = config.augment
        self.encoder: InstanceEncoder = trainable_encoder(config, width)
        shape = PoolingShape(
            width=config.hidden,
            attention_width=config.attention_hidden,
            heads=logits if config.attention_heads == "per_class" else 1,
            classes=logits,
            lse_sharpness=config.lse_sharpness,
            noisy_and_slope=config.noisy_and_slope,
            topk_instances=config.topk_instances,
            pooling_heads=config.pooling_heads,
            pooling_queries=config.pooling_queries,
            clam_instances=config.clam_instances,
            clam_loss_weight=config.clam_loss_weight,
            transmil_landmarks=config.transmil_landmarks,
            dtfd_groups=config.dtfd_groups,
            dtfd_distillation=config.dtfd_distillation,
        )
        self.pooling_name = config.pooling
        self.pooling = POOLINGS[config.pooling](shape)
        make_auxiliary = AUXILIARY_LOSSES.get(config.pooling)
        self.auxiliary = None if make_auxiliary is None else make_auxiliary(shape)
        self.classifier = nn.Linear(config.hidden, logits)
        if self.target.constants is not None:
            count = self.target.constants.count(config)
            self.register_buffer(self.target.constants.name, torch.zeros(count, dtype=torch.float64))
        self._budget: int | None = None

    @property
    def constants(self) -> Float[Tensor, " constant"]:
        """Numbers that training patients set, such as cut points; often none."""
        row = self.target.constants
        return torch.zeros(0, dtype=torch.float64) if row is None else self.get_buffer(row.name)

    def forward(
        self, batch: BagBatch, dropout: Dropout | None, plan: ChunkPlan | None = None
    ) -> Float[Tensor, "bag output"]:
        """Output of the target for each bag, as in ``BagOutput``.

        Args:
            batch: of bags.
            dropout: None outside training.
            plan: by default ``chunk_plan(batch)``.
        """
        return self.output(self._summarise(batch, dropout, plan or self.chunk_plan(batch))[1])

    def losses(
        self, batch: BagBatch, dropout: Dropout | None, loss: LossOfBags, plan: ChunkPlan | None = None
    ) -> Float[Tensor, " bag"]:
        """Training loss of each bag.

        Args:
            batch: of bags.
            dropout: None outside training.
            loss: of the target, of each bag by its output.
            plan: by default ``chunk_plan(batch)``.
        """
        plan = plan or self.chunk_plan(batch)
        if self.auxiliary is None or isinstance(self.pooling, WholeBagPooling):
            return self._target_losses(self._summarise(batch, dropout, plan)[1], loss)
        both = ProductMonoid(self.pooling, self.auxiliary)
        of_pooling, of_auxiliary = both.factors(self._pool(both, batch, dropout, plan)[1])
        auxiliary = self.auxiliary.losses(of_auxiliary, batch.labels.to(plan.device))
        return torch.lerp(self._target_losses(of_pooling, loss), auxiliary, self.auxiliary.weight)

    @torch.no_grad()
    def predict_bags(self, batch: BagBatch) -> BagOutput:
        """Output and attention of each bag, without dropout.

        Memory is constant: every chunk is lifted twice, of a batch over the memory budget once more for a first pass.
        With attention heads per class, the weight of an instance is that of the head of its bag's likeliest class.
        Noisy-or and noisy-and have no weights: there it is the instance's share of the summed probabilities of that
        class in its bag.
        """
        plan = self.chunk_plan(batch)
        if isinstance(self.pooling, WholeBagPooling):
            return self._predict_whole_bags(self.pooling, batch, plan)
        first, summary = self._pool(self.pooling, batch, None, plan)
        output = self.output(summary)
        chunks = (self._second_pass(lifted, first) for lifted in self.lift_chunks(batch, plan))
        columns = torch.cat([self._weights(self.pooling, lifted, summary) for lifted in chunks])
        segments = Segments.whole(batch.lengths).to(plan.device)
        head = output.argmax(dim=1) if columns.shape[1] > 1 else torch.zeros_like(output[:, 0], dtype=torch.int64)
        weight = columns.gather(1, head[segments.bag, None])
        return BagOutput(output, (weight / segment_sum(weight, segments)[segments.bag])[:, 0])

    @torch.no_grad()
    def contributions(self, batch: BagBatch) -> Float[Tensor, "instance class"] | None:
        """Contribution of each instance to the logits of its bag.

        None where the logits are no sum over instances. The sum over a bag's instances and the classifier's bias are
        the bag's logits.

        Args:
            batch: read chunk by chunk, twice.
        """
        pooling, plan = self.pooling, self.chunk_plan(batch)
        if not isinstance(pooling, AdditivePooling):
            return None
        first = self._pool_first(self.lifter(batch.instances[:1].dtype, None), batch, plan)
        chunks = (self._second_pass(lifted, first) for lifted in self.lift_chunks(batch, plan))
        # the bias is left out, not subtracted: contributions of a large bag would be lost in its rounding
        return torch.cat([self._classify(pooling.terms(lifted.scores, lifted.values), None) for lifted in chunks])

    def instance_budget(self, instance: Tensor) -> int:
        """Number of instances whose activations fit ``activation_mb``, at least 1.

        Measured on copies of one instance.

        Args:
            instance: any one, first axis kept.
        """
        if self._budget is None:
            copies = min(PROBE_INSTANCES, self.encoder.rows_per_chunk(instance))
            small, large = (self._saved_bytes(instance, count) for count in (copies, 2 * copies))
            bytes_per_instance = max(1, (large - small) // copies)
            self._budget = max(1, self.activation_bytes // bytes_per_instance)
        return self._budget

    @torch.no_grad()
    def outputs_of_subsets(
        self, pooling: WholeBagPooling, batch: BagBatch, subsets: Iterable[Bool[Tensor, " instance"]], plan: ChunkPlan
    ) -> Float[Tensor, "subset output"]:
        """Output of a bag reduced to some of its instances, for each subset.

        None is embedded again.

        Args:
            pooling: the model's.
            batch: of one bag.
            subsets: True for the instances that stay, at least one.
            plan: of the chunks.
        """
        whole = self._whole_bags(batch, None, plan)
        ((values, lengths),) = whole.bags
        slide = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
        pooled = []
        for subset in subsets:
            stays = subset[whole.rows]
            slides = torch.unique_consecutive(slide[stays], return_counts=True)[1].tolist()
            pooled.append(pooling.pool(values[stays.to(values.device)], slides))
        return self.output((torch.stack(pooled),))

    def check_fits(self, entries: Iterable[BagEntry], most: int, *, with_gradient: bool) -> None:
        """Check that bags which are pooled as wholes fit ``activation_mb``.

        Args:
            entries: of bags.
            most: instances that are taken of a bag; 0: all.
            with_gradient: True in training.

        Raises:
            InputError: one does not, with what it takes.
        """
        if not isinstance(self.pooling, WholeBagPooling):
            return
        for entry in entries:
            slides = (most,) if 0 < most < entry.length else entry.lengths
            taken = self._pool_bytes(self.pooling, slides, with_gradient=with_gradient)
            if taken > self.activation_bytes:
                fewer = "; allowed: more, or fewer instances_per_bag" if with_gradient else "; allowed: more"
                raise InputError(
                    f"activation_mb: expected at least {math.ceil(taken / 1e6):,} for bag {entry.bag_id!r} of "
                    f"{sum(slides):,} instances, which {self.pooling_name} pools as a whole, got "
                    f"{self.activation_bytes / 1e6:,.0f}{fewer}; raise it, or take a pooling that streams"
                )

    def lift_chunks(self, batch: BagBatch, plan: ChunkPlan | None = None) -> Iterator[LiftedChunk]:
        """Lift the chunks of a batch one after another, without dropout.

        Args:
            batch: read chunk by chunk.
            plan: by default ``chunk_plan(batch)``.
        """
        plan = plan or self.chunk_plan(batch)
        lift = self.lifter(batch.instances[:1].dtype, None)
        return (lift(batch.chunk(*span, plan.device)) for span in batch.spans(plan.rows))

    def lifter(self, stored: torch.dtype, dropout: Dropout | None) -> Callable[[Chunk], LiftedChunk]:
        """Function from a chunk to its lifted instances.

        Weights are cast now, once for all chunks of a pass.

        Args:
            stored: precision of the instances.
            dropout: None outside training.
        """
        embed = self.encoder.embedder(self.dtype, stored, 1.0 if dropout is None else dropout.scale)
        score = self.pooling.scorer(self.dtype)
        classifier = [parameter.to(self.dtype) for parameter in (self.classifier.weight, self.classifier.bias)]

        def lift(chunk: Chunk) -> LiftedChunk:
            mask, instances = None, chunk.instances
            if dropout is not None:
                mask = dropout.draw(chunk.bag_keys, chunk.segments, self.hidden)
                instances = augment(chunk, dropout) if self.augment else instances
            embeddings = embed(instances, mask)
            if isinstance(self.pooling, TieredPooling):
                group = self._pseudo_bags(self.pooling, chunk, dropout)
                scores = score(embeddings)
                return LiftedChunk(chunk, torch.cat([scores, group.to(scores.dtype)], 1), embeddings, embeddings[:, :0])
            if self.level == "embedding" or not isinstance(self.pooling, InstancePooling):
                return LiftedChunk(chunk, score(embeddings), embeddings, embeddings[:, :0])
            logit = at_least_fp32(functional.linear(embeddings, *classifier))
            return LiftedChunk(chunk, score(embeddings), self.pooling.instance_values(logit), logit)

        return lift

    def output(self, summary: Summary) -> Float[Tensor, "bag output"]:
        """Output of the target from summaries of whole bags."""
        if self.level == "instance" and isinstance(self.pooling, InstancePooling):
            return self.target.output(self.pooling.instance_log_prob(self.pooling.finish(summary)))
        return self._output_of(torch.stack(self._streams(summary)).mean(dim=0))

    def chunk_plan(self, batch: BagBatch) -> ChunkPlan:
        """Plan of the chunks of a batch, by the memory budget and the device."""
        device = self.classifier.weight.device
        budget = self.instance_budget(batch.instances[:1])
        rows = self.encoder.rows_per_chunk(batch.instances[:1]) * (GPU_CHUNKS if device.type == "cuda" else 1)
        return ChunkPlan(min(rows, budget), len(batch.instances) > budget, device)

    def _summarise(self, batch: BagBatch, dropout: Dropout | None, plan: ChunkPlan) -> tuple[Summary, Summary]:
        """Summaries of the first pass and of the pooling.

        Of a pooling of whole bags the second is their pooled values.
        """
        if not isinstance(self.pooling, WholeBagPooling):
            return self._pool(self.pooling, batch, dropout, plan)
        pool, bags = self.pooling.pool, self._whole_bags(batch, dropout, plan).bags
        taken = sum(self._pool_bytes(self.pooling, bag.slides, with_gradient=True) for bag in bags)
        if torch.is_grad_enabled() and taken > self.activation_bytes:
            return (), (
                torch.stack([checkpoint(pool, *bag, use_reentrant=False, preserve_rng_state=False) for bag in bags]),
            )
        return (), (torch.stack([pool(*bag) for bag in bags]),)

    def _whole_bags(self, batch: BagBatch, dropout: Dropout | None, plan: ChunkPlan) -> WholeBags:
        lift = self.lifter(batch.instances[:1].dtype, dropout)
        return whole_bags(lambda chunk: lift(chunk).values, batch, plan)

    def _predict_whole_bags(self, pooling: WholeBagPooling, batch: BagBatch, plan: ChunkPlan) -> BagOutput:
        whole = self._whole_bags(batch, None, plan)
        pooled, weights = zip(*(pooling.pool_and_weigh(*bag) for bag in whole.bags), strict=True)
        weight = torch.cat(weights)
        in_order = torch.empty_like(weight).index_copy_(0, whole.rows.to(weight.device), weight)
        return BagOutput(self.output((torch.stack(pooled),)), in_order)

    def _pool_bytes(self, pooling: WholeBagPooling, slides: Sequence[int], *, with_gradient: bool) -> int:
        number_bytes = torch.finfo(self.classifier.weight.dtype).bits // 8
        return pooling.pool_bytes(slides, number_bytes, with_gradient=with_gradient)

    def _pool(
        self, monoid: Monoid, batch: BagBatch, dropout: Dropout | None, plan: ChunkPlan
    ) -> tuple[Summary, Summary]:
        """Summaries of the first pass and of a monoid after it.

        The first is empty where one pass is enough.
        """
        lift = self.lifter(batch.instances[:1].dtype, dropout)
        if isinstance(self.pooling, TwoPassPooling) and not plan.oversized:
            lift = _once_per_chunk(lift)
        first = self._pool_first(lift, batch, plan)

        def summarise(chunk: Chunk) -> Summary:
            return self._second_pass(lift(chunk), first).summary(monoid)

        return first, pool_batch(monoid, summarise, batch, plan)

    def _pool_first(self, lift: Callable[[Chunk], LiftedChunk], batch: BagBatch, plan: ChunkPlan) -> Summary:
        """Summary of the first of two passes; empty where one is enough."""
        if not isinstance(self.pooling, TwoPassPooling):
            return ()
        first = self.pooling.first
        return pool_first(first, lambda chunk: lift(chunk).summary(first), batch, plan)

    def _second_pass(self, lifted: LiftedChunk, first: Summary) -> LiftedChunk:
        """A chunk as the second of two passes takes it."""
        if not isinstance(self.pooling, TwoPassPooling):
            return lifted
        scores, values = self.pooling.first.condition(
            lifted.scores, lifted.values, lifted.rows_of(first), lifted.chunk.segments
        )
        return lifted._replace(scores=scores, values=values)

    def _pseudo_bags(self, pooling: TieredPooling, chunk: Chunk, dropout: Dropout | None) -> Int[Tensor, "instance 1"]:
        """Pseudo-bag of each instance, drawn by (seed, epoch, bag, instance).

        Without training the epoch is one that no training has, and the bag does not count: no prediction depends on
        which bags are predicted beside it.
        """
        drawn, bag_keys = dropout, chunk.bag_keys
        if drawn is None:
            drawn, bag_keys = Dropout(self.seed, MAX_EPOCHS, 0.0), torch.zeros_like(bag_keys)
        return pseudo_bags(drawn.instance_keys(bag_keys, chunk.segments), pooling.groups)[:, None]

    def _tier_losses(self, pooling: TieredPooling, summary: Summary, loss: LossOfBags) -> Float[Tensor, " bag"]:
        """Mean loss of the target over the pseudo-bags of each bag."""
        logits, exists = pooling.tier_logits(summary)
        of_groups = torch.stack([loss(self._output_of(logit)) for logit in logits.unbind(dim=1)], dim=1)
        return (of_groups * exists).sum(dim=1) / exists.sum(dim=1)

    def _target_losses(self, summary: Summary, loss: LossOfBags) -> Float[Tensor, " bag"]:
        """Loss of the target of each bag, the mean of two streams or tiers."""
        if isinstance(self.pooling, TieredPooling):
            return (loss(self.output(summary)) + self._tier_losses(self.pooling, summary, loss)) / 2.0
        if not isinstance(self.pooling, TwoStreamPooling):
            return loss(self.output(summary))
        return torch.stack([loss(self._output_of(logit)) for logit in self._streams(summary)]).mean(dim=0)

    def _streams(self, summary: Summary) -> list[Float[Tensor, "bag class"]]:
        """Logits of the classifier and, with two streams, those of the pooling."""
        of_classifier = self._classify(self.pooling.finish(summary), self.classifier.bias)
        return [of_classifier] + (
            [self.pooling.stream_logit(summary)] if isinstance(self.pooling, TwoStreamPooling) else []
        )

    def _output_of(self, logit: Float[Tensor, "bag class"]) -> Float[Tensor, "bag output"]:
        return self.target.output(log_sigmoids(logit))

    def _classify(
        self, pooled: Float[Tensor, "bag pooled"], bias: Float[Tensor, " class"] | None
    ) -> Float[Tensor, "bag class"]:
        """Logits from one embedding for all classes, or from one per class.

        An embedding per class is read by the classifier row of that class only.
        """
        by_head = pooled.reshape(len(pooled), -1, self.hidden)
        if by_head.shape[1] == 1:
            return functional.linear(by_head[:, 0], self.classifier.weight, bias)
        of_class: Tensor = (by_head * self.classifier.weight).sum(dim=2)
        return of_class if bias is None else of_class + bias

    def _weights(self, pooling: Pooling, lifted: LiftedChunk, summary: Summary) -> Float[Tensor, "instance column"]:
        of_bags, segments = lifted.rows_of(summary), lifted.chunk.segments
        weights = pooling.weights(lifted.scores, lifted.values, of_bags, segments)
        if weights is not None:
            return weights
        return torch.sigmoid(lifted.logit)

    def _saved_bytes(self, instance: Tensor, count: int) -> int:
        """Bytes saved for the backward pass by so many copies of an instance."""
        rows = instance.repeat(count, *[1] * (instance.dim() - 1))
        chunk = pack([Bag("", "", 0, rows)], [0]).chunk(0, count, self.classifier.weight.device)
        storages: dict[int, int] = {}

        def record(tensor: Tensor) -> Tensor:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.enable_grad(), saved_tensors_hooks(record, lambda tensor: tensor):
            lifted = self.lifter(rows.dtype, Dropout(0, 0, self.dropout))(chunk)
            first = lifted.summary(self.pooling.first) if isinstance(self.pooling, TwoPassPooling) else ()
            second = self._second_pass(lifted, first)
            # of whole bags the pooling's own memory is not that of a number of instances
            graph = () if isinstance(self.pooling, WholeBagPooling) else second.summary(self.pooling)
            graph += second.summary(self.auxiliary) if self.auxiliary else ()
            graph += (second.values,)
        del graph  # it kept every storage alive, so that no address was counted twice
        return sum(storages.values())


class BagLosses(nn.Module):
    """Training losses of bags as a module.

    Its forward pass is what data-parallel training wraps.
    """

    def __init__(self, model: MILModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, batch: BagBatch, dropout: Dropout | None, loss: LossOfBags, plan: ChunkPlan | None = None
    ) -> Float[Tensor, " bag"]:
        """Training loss of each bag, as of ``MILModel.losses``."""
        return self.model.losses(batch, dropout, loss, plan)


def _once_per_chunk(lift: Callable[[Chunk], LiftedChunk]) -> Callable[[Chunk], LiftedChunk]:
    """The same function, which lifts a chunk once for both passes."""
    chunks: dict[int, LiftedChunk] = {}

    def lift_once(chunk: Chunk) -> LiftedChunk:
        if chunk.rows.start not in chunks:
            chunks[chunk.rows.start] = lift(chunk)
        return chunks[chunk.rows.start]

    return lift_once


def make_model(config: TrainConfig, width: int, classes: int) -> MILModel:
    """Model with Glorot weights and zero biases, initialised from ``config.seed``.

    Several threads may make models. Pretrained parameters of the encoder keep their values. Parameters are fp64 with
    precision fp64, else fp32.

    Args:
        config: of the model.
        width: of features.
        classes: at least 2.
    """
    with _GENERATOR_LOCK, torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = MILModel(config, width, classes)
        pretrained_ids = {id(parameter) for parameter in model.encoder.pretrained()}
        for parameter in (each for each in model.parameters() if id(each) not in pretrained_ids):
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
            else:
                nn.init.zeros_(parameter)
        for norm in (each for each in model.get_submodule("pooling").modules() if isinstance(each, nn.LayerNorm)):
            norm.reset_parameters()
    return model.double() if config.precision == "fp64" else model
