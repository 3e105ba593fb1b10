"""Places of instances in no order, for poolings that read them."""

import torch
from torch import Tensor

from milcore.mil.bags.batch import Bag


def places_of(instances: int, slides: tuple[int, ...] = ()) -> Tensor:
    """Places on a square grid of every slide, one slide by default, the instances of a slide in a drawn order."""
    generator = torch.Generator().manual_seed(instances)
    parts = []
    for number, length in enumerate(slides or (instances,)):
        cell = torch.randperm(length, generator=generator)
        side = int(length**0.5) + 1
        parts.append(torch.stack([torch.full_like(cell, number), cell // side, cell % side], dim=1).double())
    return torch.cat(parts)


def placed(bag: Bag) -> Bag:
    """The bag with places of its instances."""
    return Bag(bag.bag_id, bag.patient_id, bag.label, bag.instances, places_of(len(bag.instances)))
