"""What a sweep draws besides pooling and learning rate: training settings named on the command line.

``NAME=A,B,C`` is one of the values; ``NAME=LOW..HIGH`` is uniform between them, ``NAME=LOW..HIGH:log`` log-uniform;
whole numbers are rounded.
"""

import math
import random
from typing import NamedTuple

from milcore.config import TrainConfig
from milcore.errors import InputError

FORMS = "NAME=A,B,C, NAME=LOW..HIGH or NAME=LOW..HIGH:log"
# the first two have flags of their own; the others say what is trained from, which a sweep reads once
NOT_SEARCHED = ("pooling", "learning_rate", "features", "bag")


class Axis(NamedTuple):
    """A setting and what it is drawn from: choices, or where there are none, a range."""

    name: str
    choices: tuple[str, ...]
    low: float
    high: float
    log: bool

    def draw(self, source: random.Random) -> object:
        """A value, which is still to be validated."""
        if self.choices:
            return source.choice(self.choices)
        if self.log:
            value = math.exp(source.uniform(math.log(self.low), math.log(self.high)))
        else:
            value = source.uniform(self.low, self.high)
        return round(value) if TrainConfig.model_fields[self.name].annotation is int else value


def parse_axis(text: str) -> Axis:
    """Read one setting to draw.

    Raises:
        InputError: it has another form, names no training setting, or its range is none.
    """
    name, _, values = (part.strip() for part in text.partition("="))
    if not values:
        raise InputError(f"search {text!r}; allowed: {FORMS}")
    if name not in TrainConfig.model_fields or name in NOT_SEARCHED:
        allowed = ", ".join(sorted(TrainConfig.model_fields.keys() - set(NOT_SEARCHED)))
        raise InputError(f"search {text!r}: {name} cannot be drawn; allowed: {allowed}")
    if ".." not in values:
        return Axis(name, tuple(value.strip() for value in values.split(",")), math.nan, math.nan, log=False)
    ends, _, scale = values.partition(":")
    low, high = (_number(end, text) for end in ends.split("..", 1))
    if scale not in {"", "log"} or not low < high or (scale == "log" and low <= 0.0):
        raise InputError(f"search {text!r}; allowed: {FORMS}, LOW below HIGH, and above 0 with :log")
    return Axis(name, (), low, high, log=scale == "log")


def _number(text: str, whole: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InputError(f"search {whole!r}: {text!r} is no number; allowed: {FORMS}") from None
