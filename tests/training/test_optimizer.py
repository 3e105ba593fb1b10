"""The learning rate by epoch, in figures worked by hand."""

import pytest

from milcore.config import TrainConfig, parse_config
from milcore.errors import InputError
from milcore.training.optimizer import learning_rate


@pytest.mark.parametrize(
    ("schedule", "epochs", "expected"),
    [
        ("cosine", 0.0, 0.0),
        ("cosine", 1.0, 0.5),
        ("cosine", 2.0, 1.0),
        ("cosine", 6.0, 0.5),  # half of the eight epochs after warm-up
        ("cosine", 4.0, 0.8535533905932737),  # (1 + cos(pi / 4)) / 2
        ("constant", 1.5, 0.75),
        ("constant", 9.0, 1.0),
    ],
)
def test_the_learning_rate_rises_then_falls_by_half_a_cosine_or_stays(
    schedule: str, epochs: float, expected: float
) -> None:
    config = TrainConfig(schedule=schedule, learning_rate=1.0, warmup_epochs=2.0, epochs=10)
    assert learning_rate(config, epochs) == pytest.approx(expected)


def test_a_warm_up_that_never_ends_is_refused() -> None:
    with pytest.raises(InputError, match=r"warmup_epochs: expected fewer than the 3 epochs, got 3"):
        parse_config(TrainConfig, {"warmup_epochs": 3.0, "epochs": 3})
