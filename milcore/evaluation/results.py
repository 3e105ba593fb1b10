"""The results of an evaluation."""

from collections.abc import Sequence
from typing import NamedTuple

from milcore.evaluation.attention.checks import Checked
from milcore.evaluation.decision import Rule
from milcore.evaluation.run_predictions import OpenedRun
from milcore.evaluation.scores import Measured
from milcore.metrics.classification import (
    Comparison,
)


class Evaluated(NamedTuple):
    """Everything that was found of a run; ``rows`` are the model's own and those it is compared with."""

    run: OpenedRun
    rule: Rule
    measured: Measured
    checked: Checked
    rows: Sequence[Comparison]
