"""What ``python -m pipeline run`` ends with."""

from pathlib import Path

import pytest

from milcore.runtime import storage
from pipeline.__main__ import _print_result


def test_perfect_figures_are_printed_with_intervals_that_have_width(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics = {
        "auroc": 1.0,
        "accuracy": 1.0,
        "score_intervals": {"auroc": [0.58, 1.0], "accuracy": [0.72, 1.0]},
        "comparison": [{"name": "attention", "auroc": 1.0, "localisation_auroc": None}],
        "quarantined": {},
        "report": "report.html",
    }
    storage.write_json(str(tmp_path / "metrics.json"), metrics)
    _print_result(str(tmp_path))
    assert capsys.readouterr().out.splitlines()[-2:] == [
        "AUROC 1.000 (95 %: 0.58 to 1.00), accuracy 1.000 (95 %: 0.72 to 1.00), 0 slides quarantined",
        f"report: {tmp_path}/report.html",
    ]
    storage.write_json(str(tmp_path / "metrics.json"), metrics | {"auroc": None, "score_intervals": {}})
    _print_result(str(tmp_path))
    assert "AUROC undefined, accuracy 1.000, 0 slides" in capsys.readouterr().out
