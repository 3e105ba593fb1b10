"""TransMIL: a transformer over a bag's instances in the order of their places.

Axes: instance, token (class token and instances of every slide, squared), key (embedding width), head, part (width of a
head), landmark, pooled.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from milcore.mil.bags.segments import at_least_fp32
from milcore.mil.pooling.protocol import PoolingShape, ScorelessPooling, Summary

INVERSE_ITERATIONS = 6
VALUE_KERNEL = 33
PYRAMID_KERNELS = (7, 5, 3)
# numbers that the backward pass keeps, in units of the embedding width for a token, and of heads times landmarks
# squared for a bag; test_transmil.py measures both
WIDTHS_PER_TOKEN = 32
SQUARES_PER_BAG = 84
# without a backward pass
WIDTHS_PER_TOKEN_READ, SQUARES_PER_BAG_READ = 14, 8


class NystromAttention(nn.Module):
    """Self-attention of a sequence through the means of its runs, the landmarks.

    ``softmax(q l_k^T) softmax(l_q l_k^T)^+ softmax(l_q k^T) v`` beside a depthwise convolution of the values along the
    sequence. Zeros before the sequence fill it up to equal runs; they count in the landmarks and in the third softmax,
    as in the source's code. The pseudo-inverse is iterated. Products are taken from the right, so that no matrix of
    tokens by landmarks is kept.

    Source: Xiong et al. 2021, arXiv 2102.03902, equations 13 to 15, and the code that TransMIL takes it from, whose
    convolution and projection are those here.
    """

    def __init__(self, width: int, heads: int, landmarks: int) -> None:
        super().__init__()
        self.heads, self.landmarks = heads, landmarks
        self.project = nn.Linear(width, 3 * width, bias=False)
        self.local = nn.Conv1d(heads, heads, VALUE_KERNEL, padding=VALUE_KERNEL // 2, groups=heads, bias=False)
        self.join = nn.Linear(width, width)

    def forward(self, tokens: Float[Tensor, "token key"], runs: Sequence[int]) -> Float[Tensor, "token key"]:
        """Attention of every token.

        Args:
            tokens: of the sequence.
            runs: lengths of the runs of tokens that are neighbours; no convolution goes from one to another.
        """
        query, _, value, of_landmarks, mixed = self._factors(tokens)
        attended = functional.scaled_dot_product_attention(query, of_landmarks, mixed, scale=1.0)
        local = torch.cat([self._convolve(run) for run in torch.split(value, list(runs), dim=2)], dim=2)
        return self._joined(attended + local)

    def first(self, tokens: Float[Tensor, "token key"], run: int) -> Float[Tensor, " key"]:
        """Attention of the first token alone, with a run of so many neighbours."""
        query, _, value, of_landmarks, mixed = self._factors(tokens)
        attended = functional.scaled_dot_product_attention(query[:, :, :1], of_landmarks, mixed, scale=1.0)
        near = value[:, :, : min(run, 1 + VALUE_KERNEL // 2)]
        return self._joined(attended + self._convolve(near)[:, :, :1])[0]

    def weights_of_first(self, tokens: Float[Tensor, "token key"]) -> Float[Tensor, " token"]:
        """Row of the first token in the matrix of attention, the mean over heads.

        Entries may be below 0.
        """
        query, key, _, of_landmarks, inverse = self._factors(tokens, invert=True)
        row = torch.softmax(query[0, :, :1] @ of_landmarks[0].mT, dim=2) @ inverse
        padded_query, padded_key = (self._padded(each) for each in (query, key))
        heads = zip(row, self._means(padded_query)[0], padded_key[0], strict=True)
        weights = torch.stack([(part @ torch.softmax(mean @ keys.t(), dim=1))[0] for part, mean, keys in heads])
        return weights.mean(dim=0)[-len(tokens) :]

    def _factors(self, tokens: Tensor, *, invert: bool = False) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Scaled queries, keys and values of tokens, keys and values of landmarks.

        Args:
            tokens: of the sequence.
            invert: the pseudo-inverse in place of its product with the values.
        """
        parts = self.project(tokens).reshape(1, len(tokens), 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        query, key, value = parts[0] / math.sqrt(parts.shape[4]), parts[1], parts[2]
        padded_key = self._padded(key)
        query_means, key_means = self._means(self._padded(query)), self._means(padded_key)
        inverse = _pseudo_inverse(torch.softmax(query_means[0] @ key_means[0].mT, dim=2))
        if invert:
            return query, key, value, key_means, inverse
        values = functional.scaled_dot_product_attention(query_means, padded_key, self._padded(value), scale=1.0)
        return query, key, value, key_means, inverse @ values

    def _padded(self, parts: Float[Tensor, "1 head token part"]) -> Float[Tensor, "1 head padded part"]:
        return functional.pad(parts, (0, 0, -parts.shape[2] % self.landmarks, 0))

    def _means(self, parts: Float[Tensor, "1 head padded part"]) -> Float[Tensor, "1 head landmark part"]:
        return parts.reshape(1, self.heads, self.landmarks, -1, parts.shape[3]).mean(dim=3)

    def _convolve(self, values: Float[Tensor, "1 head token part"]) -> Float[Tensor, "1 head token part"]:
        convolved: Tensor = self.local(values[0].permute(2, 0, 1))
        return convolved.permute(1, 2, 0)[None]

    def _joined(self, heads: Float[Tensor, "1 head token part"]) -> Float[Tensor, "token key"]:
        joined: Tensor = self.join(heads[0].transpose(0, 1).flatten(1))
        return joined


def _pseudo_inverse(matrix: Float[Tensor, "head landmark landmark"]) -> Float[Tensor, "head landmark landmark"]:
    """Moore-Penrose inverse by iteration.

    Source: Xiong et al. 2021, equation 11; its begin is scaled over all heads, as in their code.
    """
    size = matrix.abs()
    inverse = matrix.mT / (size.sum(dim=2).max() * size.sum(dim=1).max())
    identity = torch.eye(matrix.shape[2], dtype=matrix.dtype, device=matrix.device)
    for _ in range(INVERSE_ITERATIONS):
        product = matrix @ inverse
        inverse = inverse @ (13 * identity - product @ (15 * identity - product @ (7 * identity - product))) / 4
    return inverse


class PyramidPositions(nn.Module):
    """Sum of depthwise convolutions of a square of tokens with itself: PPEG.

    The three kernels and the identity are added up to one kernel, which is the same linear map.

    Source: Shao et al. 2021, arXiv 2106.00908, algorithm 3.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=width) for kernel in PYRAMID_KERNELS
        )

    def forward(self, tokens: Float[Tensor, "token key"]) -> Float[Tensor, "token key"]:
        """Tokens of one slide, a square row by row, with their neighbours."""
        side, largest = math.isqrt(len(tokens)), max(PYRAMID_KERNELS)
        paddings = [(largest - kernel) // 2 for kernel in PYRAMID_KERNELS]
        weights = [self.get_parameter(f"layers.{k}.weight") for k in range(len(paddings))]
        biases = [self.get_parameter(f"layers.{k}.bias") for k in range(len(paddings))]
        kernels = [functional.pad(weight, (padding,) * 4) for weight, padding in zip(weights, paddings, strict=True)]
        itself = torch.zeros_like(kernels[0])
        itself[:, :, largest // 2, largest // 2] = 1.0
        bias = sum(biases[1:], start=biases[0])
        grid = tokens.t().reshape(1, -1, side, side)
        with_neighbours = functional.conv2d(
            grid, torch.stack([*kernels, itself]).sum(dim=0), bias, padding=largest // 2, groups=len(bias)
        )
        return with_neighbours.flatten(2)[0].t()


class TransformerPooling(ScorelessPooling):
    """TransMIL: two layers of Nystrom attention with PPEG between.

    The class token is the pooled value. At embedding level only, and of whole bags. The instances of a slide stand row
    by row in a square, in the order of (y, x); the first ones once more fill it. A bag of several slides has a square
    for each: neither PPEG nor the convolution of values goes from one slide to another, attention does. The class token
    stands before the first slide. The first layer of the model, linear with ReLU, is that of the source. The weight of
    an instance is the class token's attention to it in the second layer, mean over heads, at both of its tokens if it
    has two; entries below 0, which the pseudo-inverse may have, count as 0.

    Source: Shao et al. 2021, arXiv 2106.00908, algorithms 2 and 3, and the authors' code, but for their dropout of 0.1
    on what attention adds; that of embeddings is the setting's.
    """

    def __init__(self, shape: PoolingShape) -> None:
        super().__init__()
        width, heads, landmarks = shape.width, shape.pooling_heads, shape.transmil_landmarks
        self.class_token = nn.Parameter(torch.randn(1, width))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.global_layer = NystromAttention(width, heads, landmarks)
        self.positions = PyramidPositions(width)
        self.last_layer = NystromAttention(width, heads, landmarks)

    def pool(self, values: Float[Tensor, "instance key"], slides: Sequence[int]) -> Float[Tensor, " pooled"]:
        """Pooled value of a whole bag.

        Args:
            values: embeddings, slide after slide, each in the order of (y, x).
            slides: instances of each slide.
        """
        return self._read(*self._tokens(values, slides))

    def pool_and_weigh(
        self, values: Float[Tensor, "instance key"], slides: Sequence[int]
    ) -> tuple[Float[Tensor, " pooled"], Float[Tensor, " instance"]]:
        """Pooled value of a whole bag, and weights of instances, summing to 1.

        Equal weights where the class token attends to none.

        Args:
            values: as of ``pool``.
            slides: as of ``pool``.
        """
        tokens, runs = self._tokens(values, slides)
        of_tokens = self.last_layer.weights_of_first(self.norms[1](tokens))[1:]
        squares = [squared(torch.arange(begin, end)) for begin, end in _spans(slides)]
        rows = torch.cat(squares).to(values.device)
        weight = of_tokens.new_zeros(len(values)).index_add(0, rows, of_tokens.clamp_min(0.0))
        total = weight.sum()
        weight = torch.where(total > 0.0, weight / total, 1.0 / len(values))
        return self._read(tokens, runs), weight

    def finish(self, summary: Summary) -> Tensor:
        return summary[0]

    def pool_bytes(self, slides: Sequence[int], number_bytes: int, *, with_gradient: bool) -> int:
        """Most memory that the pooling of a bag takes, beside its embeddings.

        Args:
            slides: instances of each slide.
            number_bytes: of a number.
            with_gradient: True in training.
        """
        width, heads, landmarks = self.class_token.shape[1], self.last_layer.heads, self.last_layer.landmarks
        tokens = 1 + sum((math.isqrt(length - 1) + 1) ** 2 for length in slides) + landmarks
        per_token, per_bag = (
            (WIDTHS_PER_TOKEN, SQUARES_PER_BAG) if with_gradient else (WIDTHS_PER_TOKEN_READ, SQUARES_PER_BAG_READ)
        )
        return number_bytes * (per_token * width * tokens + per_bag * heads * landmarks**2)

    def _tokens(self, values: Tensor, slides: Sequence[int]) -> tuple[Float[Tensor, "token key"], list[int]]:
        """Tokens before the last layer, and the runs of them that are neighbours."""
        squares = [squared(each) for each in torch.split(at_least_fp32(values), list(slides))]
        lengths = [len(square) for square in squares]
        runs = [1 + lengths[0], *lengths[1:]]
        tokens = torch.cat([self.class_token, *squares])
        tokens = tokens + self.global_layer(self.norms[0](tokens), runs)
        placed = [self.positions(square) for square in torch.split(tokens[1:], lengths)]
        return torch.cat([tokens[:1], *placed]), runs

    def _read(self, tokens: Float[Tensor, "token key"], runs: Sequence[int]) -> Float[Tensor, " pooled"]:
        """Class token after the last layer."""
        read: Tensor = self.norms[2](tokens[0] + self.last_layer.first(self.norms[1](tokens), runs[0]))
        return read


def squared(rows: Tensor) -> Tensor:
    """Rows with the first ones once more, up to a square number."""
    side = math.isqrt(len(rows) - 1) + 1
    return torch.cat([rows, rows[: side * side - len(rows)]])


def _spans(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """Begin and end (exclusive) of parts one after another."""
    ends = torch.tensor(lengths).cumsum(0).tolist()
    return [(end - length, end) for end, length in zip(ends, lengths, strict=True)]
