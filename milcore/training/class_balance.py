"""Classes of unequal size: weights that even out their losses, or epochs that see each of them equally often.

Both follow from labels, seed and epoch alone, so that every rank forms the same global batches with the same weights.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int


def class_weights(labels: Int[np.ndarray, " bag"], classes: int) -> Float[np.ndarray, " class"]:
    """``n / (C n_c)``: the mean weight over the bags is 1 where every class has bags; 0 for a class without any."""
    counts = np.bincount(labels, minlength=classes)
    return np.divide(len(labels), classes * counts, out=np.zeros(classes), where=counts > 0)


def balanced_sample(indices: Sequence[int], labels: Sequence[int], seed: int, epoch: int) -> list[int]:
    """As many bags as there are, each class as often as any other to within one, in order of class.

    The bags of a class are drawn without replacement until all of them were, then again: a small class repeats, and of
    a large one every epoch sees another part.

    Args:
        indices: bags to draw from.
        labels: the class of each.
        seed: of the run.
        epoch: another one draws others.
    """
    present = sorted(set(labels))
    drawn: list[int] = []
    for place, label in enumerate(present):
        quota = len(indices) // len(present) + (place < len(indices) % len(present))
        its = [index for index, other in zip(indices, labels, strict=True) if other == label]
        draw = np.random.default_rng([seed, epoch, 1 + label])
        rounds = [draw.permutation(its) for _ in range(-(-quota // len(its)))]
        drawn += np.concatenate(rounds)[:quota].tolist() if rounds else []
    return drawn
