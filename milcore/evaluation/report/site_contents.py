"""Contents of the report's section on sites."""

from dataclasses import dataclass

from milcore.metrics.classification import Estimate
from milcore.metrics.sites import Robustness, SiteAuroc, SiteMetrics, SiteProbe


@dataclass(frozen=True, slots=True)
class RunComparison:
    """AUROC of two runs on the bags that both left out.

    Args:
        other: name of the other run.
        split_by: of this run and of the other, ``patient`` or ``site``.
        bags: number of bags that both left out.
        sites: number of their sites.
        this_auroc: of this run; intervals of all three are of resampled sites.
        other_auroc: of the other.
        difference: the other's less this run's.
    """

    other: str
    split_by: tuple[str, str]
    bags: int
    sites: int
    this_auroc: Estimate
    other_auroc: Estimate
    difference: Estimate


@dataclass(frozen=True, slots=True)
class SiteResults:
    """Results by site.

    Args:
        split: the bags that are measured: ``test``, or ``val`` where the run has no test bags but folds.
        without_site: number of bags whose site is not known, which are left out.
        of_sites: metrics of each site.
        auroc: over the sites and within them.
        probe: of the site by embeddings; None where the models share no embedding.
        robustness: of the embeddings; None likewise.
        comparison: with another run; None where none was named.
        warnings: signs that the model reads the site.
    """

    split: str
    without_site: int
    of_sites: dict[str, SiteMetrics]
    auroc: SiteAuroc
    probe: SiteProbe | None
    robustness: Robustness | None
    comparison: RunComparison | None
    warnings: tuple[str, ...]
