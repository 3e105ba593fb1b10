"""Class balance: weights of the loss per class, or balanced sampling of bags.

Both follow from labels, seed and epoch alone, so that every rank forms the same global batches with the same weights.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int


def class_weights(labels: Int[np.ndarray, " bag"], classes: int) -> Float[np.ndarray, " class"]:
    """Weight of each class: ``n / (C n_c)``.

    n bags in C classes, n_c in class c. The mean over the bags is 1 where every class has bags; a class without bags
    has weight 0.
    """
    counts = np.bincount(labels, minlength=classes)
    return np.divide(len(labels), classes * counts, out=np.zeros(classes), where=counts > 0)


def balanced_sample(indices: Sequence[int], labels: Sequence[int], seed: int, epoch: int) -> list[int]:
    """Sample every class equally often, to within one, as many bags as given.

    The bags of a class are drawn without replacement, again from the start once all are drawn: bags of a small class
    repeat, and of a large class every epoch draws another subset.

    Args:
        indices: bags to draw from.
        labels: the class of each.
        seed: of the run.
        epoch: each epoch draws another sample.

    Returns:
        Indices in order of class.
    """
    classes = sorted(set(labels))
    sample: list[int] = []
    for place, label in enumerate(classes):
        quota = len(indices) // len(classes) + (place < len(indices) % len(classes))
        of_class = [index for index, other in zip(indices, labels, strict=True) if other == label]
        generator = np.random.default_rng([seed, epoch, 1 + label])
        rounds = [generator.permutation(of_class) for _ in range(-(-quota // len(of_class)))]
        sample += np.concatenate(rounds)[:quota].tolist() if rounds else []
    return sample
