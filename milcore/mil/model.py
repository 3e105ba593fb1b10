"""The MIL model: encoder f, pooling sigma and classifier g over ragged batches of bags.

``theta(X) = g(sigma({f(x)}))``. At embedding level the classifier reads the pooled embedding; at instance level it
scores each instance and the pooling acts on the scores' probabilities. Two classes share one logit. With more, each
class has its own; at instance level class c then has ``theta_c``, and the bag's probabilities are the softmax of their
log-odds. Source: Ilse, Tomczak, Welling 2018, arXiv 1802.04712, sections 2.1 and 2.2.

A batch is walked over in chunks, and recomputed instead of kept where its activations exceed the budget. Products are
taken in the precision of the config by weights that are cast once per pass; bags are summed up in at least fp32.

Axes: bag, class, instance, key (embedding width), head, value.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional

from milcore.config import TrainConfig
from milcore.mil.augmentation import augment
from milcore.mil.bags.batch import Bag, BagBatch, Chunk, pack
from milcore.mil.bags.segments import Segments, at_least_fp32, segment_sum
from milcore.mil.dropout import Dropout
from milcore.mil.instance_encoders.protocol import InstanceEncoder
from milcore.mil.instance_encoders.table import trainable_encoder
from milcore.mil.pooling.pooling import POOLINGS, PoolingShape, Summary, log_sigmoids
from milcore.mil.pooling.streaming import ChunkPlan, pool_batch

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp64": torch.float64}
MEASURED_INSTANCES = 64
GPU_CHUNKS = 16


class BagOutput(NamedTuple):
    """What a model says of each bag, and which instances it looked at (weights sum to 1 in every bag)."""

    log_prob: Float[Tensor, "bag class"]
    attention: Float[Tensor, " instance"]


class LiftedChunk(NamedTuple):
    """Instances of a chunk as the pooling takes them; no logits at embedding level."""

    chunk: Chunk
    scores: Float[Tensor, "instance head"]
    values: Float[Tensor, "instance value"]
    logit: Float[Tensor, "instance class"]


class MILModel(nn.Module):
    """Encoder, pooling and classifier.

    Args:
        config: widths, pooling, level, precision and memory.
        width: feature width of frozen features; not read when the config names an encoder.
        classes: at least 2.
    """

    def __init__(self, config: TrainConfig, width: int, classes: int) -> None:
        super().__init__()
        logits = 1 if classes == 2 else classes
        self.level = config.level
        self.classes = classes
        self.hidden = config.hidden
        self.dropout = config.dropout
        self.dtype = DTYPES[config.precision]
        self.activation_bytes = int(config.activation_mb * 1e6)
        self.augment = config.augment
        self.encoder: InstanceEncoder = trainable_encoder(config, width)
        self.pooling = POOLINGS[config.pooling](
            PoolingShape(
                width=config.hidden,
                attention_width=config.attention_hidden,
                heads=logits if config.attention_heads == "per_class" else 1,
                classes=logits,
                lse_sharpness=config.lse_sharpness,
                noisy_and_slope=config.noisy_and_slope,
            )
        )
        self.classifier = nn.Linear(config.hidden, logits)
        self._budget: int | None = None

    def forward(
        self, batch: BagBatch, dropout: Dropout | None, plan: ChunkPlan | None = None
    ) -> Float[Tensor, "bag class"]:
        """Log-probabilities of the classes of each bag.

        Args:
            batch: of bags.
            dropout: None outside training.
            plan: by default ``chunk_plan(batch)``.
        """
        return self.log_prob(self._pool(batch, dropout, plan or self.chunk_plan(batch)))

    @torch.no_grad()
    def predict_bags(self, batch: BagBatch) -> BagOutput:
        """Log-probabilities and attention, without dropout and in constant memory: every chunk is lifted twice.

        With attention heads per class, an instance's weight is that of the head of its bag's likeliest class. Noisy-or
        and noisy-and weigh nothing: there it is the instance's share of the bag's summed probabilities of that class.
        """
        plan = self.chunk_plan(batch)
        summary = self._pool(batch, None, plan)
        log_prob = self.log_prob(summary)
        columns = torch.cat([self._weights(lifted, summary) for lifted in self.lift_chunks(batch, plan)])
        segments = Segments.whole(batch.lengths).to(plan.device)
        chosen = log_prob.argmax(dim=1) if columns.shape[1] > 1 else torch.zeros_like(log_prob[:, 0], dtype=torch.int64)
        weight = columns.gather(1, chosen[segments.bag, None])
        return BagOutput(log_prob, (weight / segment_sum(weight, segments)[segments.bag])[:, 0])

    def instance_budget(self, instance: Tensor) -> int:
        """How many instances' activations fit ``activation_mb``, as measured on copies of one; at least 1.

        Args:
            instance: any one, first axis kept.
        """
        if self._budget is None:
            copies = min(MEASURED_INSTANCES, self.encoder.rows_per_chunk(instance))
            small, large = (self._kept_bytes(instance, count) for count in (copies, 2 * copies))
            each = max(1, (large - small) // copies)
            self._budget = max(1, self.activation_bytes // each)
        return self._budget

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
        """What the pooling takes of a chunk, by weights that are cast now, once for all chunks of a pass.

        Args:
            stored: precision of the instances.
            dropout: None outside training.
        """
        embed = self.encoder.embedder(self.dtype, stored, 1.0 if dropout is None else dropout.scale)
        score = self.pooling.scorer(self.dtype)
        classifier = [each.to(self.dtype) for each in (self.classifier.weight, self.classifier.bias)]

        def lift(chunk: Chunk) -> LiftedChunk:
            mask, instances = None, chunk.instances
            if dropout is not None:
                mask = dropout.draw(chunk.bag_keys, chunk.segments, self.hidden)
                instances = augment(chunk, dropout) if self.augment else instances
            embeddings = embed(instances, mask)
            if self.level == "embedding":
                return LiftedChunk(chunk, score(embeddings), embeddings, embeddings[:, :0])
            logit = at_least_fp32(functional.linear(embeddings, *classifier))
            return LiftedChunk(chunk, score(embeddings), self.pooling.instance_values(logit), logit)

        return lift

    def log_prob(self, summary: tuple[Tensor, ...]) -> Float[Tensor, "bag class"]:
        """Log-probabilities of the classes from summaries of whole bags."""
        pooled = self.pooling.finish(summary)
        if self.level == "instance":
            of_class = self.pooling.instance_log_prob(pooled)
        else:
            of_class = log_sigmoids(self._classify(pooled))
        if of_class.shape[2] == 1:
            return of_class[:, :, 0]
        return torch.log_softmax(of_class[:, 1] - of_class[:, 0], dim=1)

    def chunk_plan(self, batch: BagBatch) -> ChunkPlan:
        """How this batch is walked over."""
        device = self.classifier.weight.device
        budget = self.instance_budget(batch.instances[:1])
        rows = self.encoder.rows_per_chunk(batch.instances[:1]) * (GPU_CHUNKS if device.type == "cuda" else 1)
        return ChunkPlan(min(rows, budget), len(batch.instances) > budget, device)

    def _pool(self, batch: BagBatch, dropout: Dropout | None, plan: ChunkPlan) -> Summary:
        lift = self.lifter(batch.instances[:1].dtype, dropout)

        def lift_bags(chunk: Chunk) -> Summary:
            lifted = lift(chunk)
            return self.pooling.lift(lifted.scores, lifted.values, chunk.segments)

        return pool_batch(self.pooling, lift_bags, batch, plan)

    def _classify(self, pooled: Float[Tensor, "bag pooled"]) -> Float[Tensor, "bag class"]:
        """One embedding for all classes, or one per class, which only its own row of the classifier reads."""
        by_head = pooled.reshape(len(pooled), -1, self.hidden)
        if by_head.shape[1] == 1:
            logit: Tensor = self.classifier(by_head[:, 0])
            return logit
        of_class: Tensor = (by_head * self.classifier.weight).sum(dim=2) + self.classifier.bias
        return of_class

    def _weights(self, lifted: LiftedChunk, summary: Summary) -> Float[Tensor, "instance column"]:
        chunk = lifted.chunk
        bags = slice(chunk.first_bag, chunk.first_bag + chunk.segments.bags)
        here = tuple(each[bags] for each in summary)
        weights = self.pooling.weights(lifted.scores, lifted.values, here, chunk.segments)
        if weights is not None:
            return weights
        return torch.sigmoid(lifted.logit)

    def _kept_bytes(self, instance: Tensor, count: int) -> int:
        """Bytes that the backward pass keeps of so many copies of an instance."""
        rows = instance.repeat(count, *[1] * (instance.dim() - 1))
        chunk = pack([Bag("", "", 0, rows)], [0]).chunk(0, count, self.classifier.weight.device)
        storages: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.enable_grad(), saved_tensors_hooks(keep, lambda tensor: tensor):
            lifted = self.lifter(rows.dtype, Dropout(0, 0, self.dropout))(chunk)
            graph = self.pooling.lift(lifted.scores, lifted.values, chunk.segments)
        del graph  # it has kept every storage alive, so that no address was counted twice
        return sum(storages.values())


def make_model(config: TrainConfig, width: int, classes: int) -> MILModel:
    """A model with Glorot weights and zero biases drawn from ``config.seed``, in the config's parameter precision.

    What an encoder brings with it is kept.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = MILModel(config, width, classes)
        kept_ids = {id(parameter) for parameter in model.encoder.pretrained()}
        for parameter in (each for each in model.parameters() if id(each) not in kept_ids):
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
            else:
                nn.init.zeros_(parameter)
    return model.double() if config.precision == "fp64" else model


def emulates_bf16(device: torch.device) -> bool:
    """Whether products in bf16 are put together from others there, which takes many times as long as fp32."""
    has = torch.cpu.get_capabilities()
    return device.type == "cpu" and not any(has.get(name) for name in ("amx_bf16", "avx512_bf16", "bf16"))
