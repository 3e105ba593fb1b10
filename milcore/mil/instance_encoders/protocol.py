"""The contract of instance encoders that are trained with the model.

Axes: instance, hidden (embedding width), feature; the other axes of instances are (feature,) or (height, width, 3).
"""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from milcore.mil.dropout import Mask

Embed = Callable[[Shaped[Tensor, "instance ..."], Mask | None], Float[Tensor, "instance hidden"]]
FeatureStatistics = Callable[[], tuple[Float[Tensor, " feature"], Float[Tensor, " feature"]]]


@runtime_checkable
class InstanceEncoder(Protocol):
    """Instance encoder f, an ``nn.Module`` whose parameters are trained with the model."""

    def rows_per_chunk(self, instance: Shaped[Tensor, "1 ..."]) -> int:
        """Instances per chunk.

        Args:
            instance: any one, first axis kept.
        """
        ...

    def embedder(self, dtype: torch.dtype, stored: torch.dtype, scale: float) -> Embed:
        """Function from stored instances to embeddings, by the current weights.

        Args:
            dtype: of the products.
            stored: of the instances.
            scale: of the embeddings, for those that the function's second argument, the mask, drops; 1 without.
        """
        ...

    def pretrained(self) -> list[nn.Parameter]:
        """Parameters that keep their pretrained values when a model is initialised."""
        ...

    def prepare(self, statistics: FeatureStatistics) -> None:
        """Set up from the training bags, before the first epoch.

        Args:
            statistics: mean and standard deviation of each feature over the instances of the training bags; called
                only by an encoder that needs them, because it reads all of these bags.
        """
        ...
