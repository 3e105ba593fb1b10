"""The MIL model: encoder f, pooling sigma and classifier g over ragged batches of bags.

``theta(X) = g(sigma({f(x)}))``. At embedding level the classifier reads the pooled embedding; at instance level it
scores each instance and the pooling acts on the scores' probabilities.

Dropout is keyed by (seed, epoch, bag, instance), never by batch, rank or chunk: one worker and many draw equal masks.

Source: Ilse, Tomczak, Welling 2018, arXiv 1802.04712, sections 2.1 and 2.2.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from milcore.bags import BagBatch
from milcore.config import TrainConfig
from milcore.encoders.conv import ConvEncoder
from milcore.pooling import Pooling, log_sigmoids, make_pooling


class BagOutput(NamedTuple):
    """What a model says of each bag, and which instances it looked at (weights sum to 1 in every bag)."""

    log_prob: Float[Tensor, "bag 2"]
    attention: Float[Tensor, " instance"]


class Dropout(NamedTuple):
    """The randomness of one training pass."""

    seed: int
    epoch: int


class FeatureEncoder(nn.Module):
    """``h = ReLU(W (x - mean) / sd + b)`` over frozen features; mean and sd are those of the training bags."""

    mean: Tensor
    sd: Tensor

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("sd", torch.ones(width))
        self.project = nn.Linear(width, hidden)

    def forward(self, features: Float[Tensor, "instance feature"]) -> Float[Tensor, "instance hidden"]:
        """Embeddings of features as stored."""
        return torch.relu(self.project((features - self.mean) / self.sd))

    def standardise(self, mean: Float[Tensor, " feature"], sd: Float[Tensor, " feature"]) -> None:
        """Take over the statistics of the training bags; a constant feature is left as it is."""
        self.mean.copy_(mean)
        self.sd.copy_(torch.where(sd > 0, sd, torch.ones_like(sd)))


class MILModel(nn.Module):
    """Encoder, pooling and classifier.

    Args:
        config: widths, pooling, level and dropout.
        width: feature width of frozen features; not read when the config names an encoder.
    """

    def __init__(self, config: TrainConfig, width: int) -> None:
        super().__init__()
        self.level = config.level
        self.dropout = config.dropout
        self.encoder = FeatureEncoder(width, config.hidden) if config.encoder is None else ConvEncoder(config.hidden)
        self.pooling: Pooling = make_pooling(config.pooling, config.hidden, config.attention_hidden)
        self.classifier = nn.Linear(config.hidden, 1)

    def forward(self, batch: BagBatch, dropout: Dropout | None) -> Float[Tensor, "bag 2"]:
        """Log-probabilities (negative, positive) of each bag; ``dropout`` is None outside training."""
        return self._log_prob(*self._summarise(batch, dropout))

    def explain(self, batch: BagBatch) -> BagOutput:
        """Log-probabilities and attention, without dropout."""
        embeddings, logit, summary = self._summarise(batch, None)
        weights = self.pooling.weights(embeddings, summary, batch.segments)
        return BagOutput(self._log_prob(embeddings, logit, summary), weights)

    def _summarise(self, batch: BagBatch, dropout: Dropout | None) -> tuple[Tensor, Tensor | None, tuple[Tensor, ...]]:
        embeddings = self.encoder(batch.instances)
        if dropout is not None and self.dropout > 0.0:
            embeddings = keyed_dropout(embeddings, instance_keys(batch, dropout), self.dropout)
        if self.level == "embedding":
            return embeddings, None, self.pooling.lift(embeddings, embeddings, batch.segments)
        logit = self.classifier(embeddings)
        return embeddings, logit, self.pooling.lift(embeddings, self.pooling.instance_values(logit), batch.segments)

    def _log_prob(self, embeddings: Tensor, logit: Tensor | None, summary: tuple[Tensor, ...]) -> Tensor:
        pooled = self.pooling.finish(summary)
        if logit is not None:
            return self.pooling.instance_log_prob(pooled)
        return log_sigmoids(self.classifier(pooled.to(embeddings.dtype)))


def make_model(config: TrainConfig, width: int) -> MILModel:
    """A model with Glorot weights and zero biases drawn from ``config.seed``, in the config's parameter precision."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = MILModel(config, width)
        for parameter in model.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
            else:
                nn.init.zeros_(parameter)
    return model.double() if config.precision == "fp64" else model


def instance_keys(batch: BagBatch, dropout: Dropout) -> Int[Tensor, " instance"]:
    """A key per instance from (seed, epoch, bag, instance), alike in every batching and world size."""
    keys = _mix(torch.tensor(dropout.seed, device=batch.keys.device) * 0x9E3779B1 + dropout.epoch)
    keys = _mix(keys + batch.keys)
    return _mix(keys[batch.segments.bag] + batch.segments.position)


def keyed_dropout(
    values: Float[Tensor, "instance hidden"], keys: Int[Tensor, " instance"], rate: float
) -> Float[Tensor, "instance hidden"]:
    """Zero each entry with probability ``rate`` and scale the others by ``1 / (1 - rate)``."""
    columns = torch.arange(values.shape[1], device=values.device)
    draw = (_mix(keys[:, None] + columns) & 0xFFFFFF).to(torch.float32) / 0x1000000
    return torch.where(draw >= rate, values / (1.0 - rate), torch.zeros_like(values))


def _mix(keys: Int[Tensor, "..."]) -> Int[Tensor, "..."]:
    """A bijective 64-bit hash with wrapping arithmetic (the finaliser of SplitMix64, Steele et al. 2014)."""
    keys = keys + (0x9E3779B97F4A7C15 - (1 << 64))
    keys = (keys ^ _shift(keys, 30)) * (0xBF58476D1CE4E5B9 - (1 << 64))
    keys = (keys ^ _shift(keys, 27)) * (0x94D049BB133111EB - (1 << 64))
    return keys ^ _shift(keys, 31)


def _shift(keys: Int[Tensor, "..."], bits: int) -> Int[Tensor, "..."]:
    """Logical right shift; torch's own keeps the sign."""
    return (keys >> bits) & ((1 << (64 - bits)) - 1)
