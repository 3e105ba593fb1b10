"""The results of an evaluation."""

from collections.abc import Sequence
from typing import NamedTuple

from milcore.evaluation.attention.checks import AttentionChecks
from milcore.evaluation.decision import DecisionRule
from milcore.evaluation.report.site_contents import SiteResults
from milcore.evaluation.run_predictions import RunPredictions
from milcore.evaluation.scores import SplitMetrics
from milcore.metrics.classification import Comparison


class RunResults(NamedTuple):
    """Results of the evaluation of one run.

    Args:
        metrics: of the test split, with those of attention.
        comparison: row of the run's own model, then those of the baselines.
        sites: None where fewer than two are known.
    """

    run: RunPredictions
    rule: DecisionRule
    metrics: SplitMetrics
    checks: AttentionChecks
    comparison: Sequence[Comparison]
    sites: SiteResults | None

    @property
    def warnings(self) -> tuple[str, ...]:
        """Warnings of the sites, then of the attention."""
        return (*(() if self.sites is None else self.sites.warnings), *self.checks.warnings)
