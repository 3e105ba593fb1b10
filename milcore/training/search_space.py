"""Search space of a sweep: training settings drawn besides pooling and learning rate.

``NAME=A,B,C`` draws one of the values; ``NAME=LOW..HIGH`` is uniform between them, ``NAME=LOW..HIGH:log`` log-uniform;
settings that are integers are rounded.
"""

import math
import random
from typing import NamedTuple, get_args

from milcore.config import TrainConfig, TuneConfig, parse_config, without_unread
from milcore.errors import InputError

FORMS = "NAME=A,B,C, NAME=LOW..HIGH or NAME=LOW..HIGH:log"
# the first two have options of their own; the others name instances and target, which a sweep reads once
NOT_SEARCHED = ("pooling", "learning_rate", "features", "bag", "target", "time", "event")


class Axis(NamedTuple):
    """A setting of the search space, drawn from choices or from a range.

    Args:
        name: field of TrainConfig.
        choices: values as text; empty for a range.
        low: lower end of the range.
        high: upper end of the range.
        log: True where the range is log-uniform.
    """

    name: str
    choices: tuple[str, ...]
    low: float
    high: float
    log: bool

    def draw(self, generator: random.Random) -> object:
        """Draw a value, not yet validated."""
        if self.choices:
            return generator.choice(self.choices)
        if self.log:
            value = math.exp(generator.uniform(math.log(self.low), math.log(self.high)))
        else:
            value = generator.uniform(self.low, self.high)
        kind = TrainConfig.model_fields[self.name].annotation
        return round(value) if kind is int or int in get_args(kind) else value


def parse_axis(text: str) -> Axis:
    """Parse one setting of the search space.

    Raises:
        InputError: it has another form, names no training setting, or its range is empty.
    """
    name, _, values = (part.strip() for part in text.partition("="))
    if not values:
        raise InputError(f"search: expected a setting and values, got {text!r}; allowed: {FORMS}")
    if name not in TrainConfig.model_fields or name in NOT_SEARCHED:
        allowed = ", ".join(sorted(TrainConfig.model_fields.keys() - set(NOT_SEARCHED)))
        raise InputError(f"search {text!r}: expected a setting that can be drawn, got {name}; allowed: {allowed}")
    if ".." not in values:
        return Axis(name, tuple(value.strip() for value in values.split(",")), math.nan, math.nan, log=False)
    ends, _, scale = values.partition(":")
    low, high = (_number(end, text) for end in ends.split("..", 1))
    if scale not in {"", "log"} or not low < high or (scale == "log" and low <= 0.0):
        raise InputError(
            f"search: expected a range, got {text!r}; allowed: {FORMS}, LOW below HIGH, and above 0 with :log"
        )
    return Axis(name, (), low, high, log=scale == "log")


def trial_configs(config: TuneConfig) -> list[TrainConfig]:
    """Training settings of every trial, a function of the config alone.

    Trial k has pooling k modulo their number and ``learning_rate = exp(uniform(log min, log max))``. Every other
    setting has a generator seeded by (seed, trial, name), so that adding one leaves the others unchanged. Settings that
    the pooling of a trial does not read keep their defaults there.

    Raises:
        InputError: a setting cannot be drawn, or a value drawn is out of range.
    """
    axes = [parse_axis(text) for text in config.search]
    generator = random.Random(config.tune_seed)  # noqa: S311 - nothing secret
    low, high = math.log(config.learning_rate_min), math.log(config.learning_rate_max)
    shared = config.train.model_dump()
    trials = []
    for trial in range(config.trials):
        settings: dict[str, object] = {"pooling": config.poolings[trial % len(config.poolings)]}
        settings["learning_rate"] = math.exp(generator.uniform(low, high))
        for axis in axes:
            settings[axis.name] = axis.draw(random.Random(f"{config.tune_seed} {trial} {axis.name}"))  # noqa: S311
        trials.append(parse_config(TrainConfig, without_unread(shared | settings)))
    return trials


def searched_settings(config: TuneConfig, trial: TrainConfig) -> tuple[tuple[str, object], ...]:
    """Name and value of the settings a trial drew besides pooling and learning rate."""
    return tuple((axis.name, getattr(trial, axis.name)) for axis in map(parse_axis, config.search))


def _number(text: str, setting: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"search {setting!r}: expected a number, got {text!r}; allowed: {FORMS}")
    return value
