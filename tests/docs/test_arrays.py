"""The code of docs/arrays.md runs, on bags of random features."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

PAGE = (Path(__file__).resolve().parents[2] / "docs/arrays.md").read_text()
CODE = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture
def names() -> dict[str, Any]:
    """What the page takes for given."""
    random = np.random.default_rng(0)
    labels = ["tumour" if k % 2 else "normal" for k in range(18)]
    return {
        "arrays": [random.normal(k % 2, 1.0, (1 + k % 5, 4)) for k in range(18)],
        "labels": labels,
        "patients": [f"p{k // 2}" for k in range(18)],
        "splits": ["train"] * 10 + ["val"] * 4 + ["test"] * 4,
    }


def test_the_code_of_the_page_runs(names: dict[str, Any]) -> None:
    assert len(CODE) == 2
    exec(CODE[0].replace("epochs=50", "epochs=2"), names)  # noqa: S102 - the page's own code
    assert len(names["predictions"]) == 18
    assert names["predictions"][3].attention.shape == (4,)
    exec(CODE[1].replace("epochs=50", "epochs=2"), names)  # noqa: S102 - as above
    assert list(names["called"]) == [f"bag-{k:04d}" for k in range(14, 18)]
    assert set(names["called"].values()) <= {"normal", "tumour"}
