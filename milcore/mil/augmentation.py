"""Augmentation of H&E patches: random orientation per patch, random stain intensity per bag.

Random numbers are keyed like those of dropout, so they are the same in every batch, chunk and world size. The stain
changes per bag because a slide is stained as a whole.

Axes: instance, bag, height, width; the last axis of patches is RGB.
"""

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.nn import functional

from milcore.mil.bags.batch import Chunk
from milcore.mil.dropout import Dropout, uniform

STAIN_SPREAD = 0.2
# optical density of haematoxylin and of eosin in red, green and blue
STAINS = ((0.650, 0.704, 0.286), (0.072, 0.990, 0.105))


def augment(chunk: Chunk, randomness: Dropout) -> Float[Tensor, "instance height width 3"]:
    """Augmented patches of a chunk, 0 to 255.

    Each patch is put in one of its eight orientations; each bag gets its own factors of haematoxylin and eosin.

    Args:
        chunk: of patches, u1.
        randomness: of the training pass.
    """
    oriented = orient(chunk.instances, randomness.instance_keys(chunk.bag_keys, chunk.segments) & 7)
    amount = 1.0 + STAIN_SPREAD * (2.0 * uniform(randomness.keys(chunk.bag_keys), len(STAINS)) - 1.0)
    return stain(oriented, amount[chunk.segments.bag])


def orient(
    patches: UInt8[Tensor, "instance height width 3"], orientation: Int[Tensor, " instance"]
) -> UInt8[Tensor, "instance height width 3"]:
    """Flip patches vertically (bit 0), horizontally (bit 1), and transpose square ones (bit 2).

    The eight symmetries of the square.
    """
    bits = [(orientation & bit).bool()[:, None, None, None] for bit in (1, 2, 4)]
    patches = torch.where(bits[0], patches.flip(1), patches)
    patches = torch.where(bits[1], patches.flip(2), patches)
    return torch.where(bits[2], patches.transpose(1, 2), patches) if patches.shape[1] == patches.shape[2] else patches


def stain(
    patches: UInt8[Tensor, "instance height width 3"], amount: Float[Tensor, "instance 2"]
) -> Float[Tensor, "instance height width 3"]:
    """Multiply the amounts of haematoxylin and eosin in patches.

    ``OD' = OD M^-1 diag(a) M`` with the optical density ``OD = -log((v + 1) / 256)`` and M the stain matrix. The third
    row of M is orthogonal to both stains and keeps its amount.

    Args:
        patches: 0 to 255.
        amount: factors of haematoxylin and eosin.

    Source: Ruifrok, Johnston 2001 (stain matrix); Tellez et al. 2019, arXiv 1902.06543, HED-strong (spread 0.2),
    without its shift, which tints glass.
    """
    stains = functional.normalize(torch.tensor(STAINS, device=patches.device), dim=1)
    matrix = torch.cat([stains, functional.normalize(torch.linalg.cross(stains[:1], stains[1:]), dim=1)])
    factors = functional.pad(amount, (0, 1), value=1.0)
    change = torch.linalg.inv(matrix) @ (factors[:, :, None] * matrix)
    density = -torch.log((patches.float() + 1.0) / 256.0)
    changed = torch.bmm(density.flatten(1, 2), change).reshape(density.shape)
    return (256.0 * torch.exp(-changed) - 1.0).clamp(0.0, 255.0)
