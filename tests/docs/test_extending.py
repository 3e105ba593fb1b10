"""The pooling that docs/extending.md shows keeps the contract of the table."""

import re
from pathlib import Path

import pytest
import torch

from milcore.mil.pooling import pooling
from tests.mil.pooling import test_pooling as contract

PAGE = (Path(__file__).resolve().parents[2] / "docs/extending.md").read_text()
NAME = "log_odds"


@pytest.fixture(params=["instance", "embedding"])
def row(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """The page's class as a row of POOLINGS, at a level."""
    (code,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    file = dict(vars(pooling))
    exec(code, file)  # noqa: S102 - it is the page's, as it would stand in the file
    monkeypatch.setitem(pooling.POOLINGS, NAME, file["LogOddsPooling"])
    torch.manual_seed(1)
    return NAME, request.param


@pytest.mark.parametrize("shape", contract.SHAPES)
def test_the_pooling_shown_is_one_of_the_table(row: tuple[str, str], shape: str) -> None:
    sigma = contract.Sigma(*row, *contract.SHAPES[shape])
    contract.test_summaries_of_parts_merge_in_any_order_to_that_of_the_whole(sigma)
    contract.test_the_gradient_through_merged_parts_is_that_of_the_whole(sigma)
    contract.test_gradients_are_those_of_finite_differences(sigma)
    contract.test_weights_sum_to_one_in_every_bag_or_are_not_defined(sigma, row)
    for extreme in (1e4, -1e4):
        contract.test_extreme_values_stay_finite_with_their_gradients(sigma, extreme)


def test_it_pools_log_odds(row: tuple[str, str]) -> None:
    """Logits 0 and 2 have the mean 1; at embedding level the embeddings have theirs."""
    sigma = contract.Sigma(*row)
    keys = torch.zeros(2, contract.WIDTH, dtype=contract.FLOAT)
    keys[1, 0] = 2.0
    pooled = sigma(keys, [2])
    expected = torch.sigmoid(torch.tensor([-1.0, 1.0])).log().tolist() if row[1] == "instance" else [1.0, 0.0]
    assert pooled.flatten().tolist()[:2] == pytest.approx(expected, rel=1e-6)
