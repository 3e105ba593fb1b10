"""Results by site as members of ``metrics.json``."""

from typing import Any

from milcore.evaluation.metrics_json import metric_entries, nan_to_none
from milcore.evaluation.report.site_contents import RunComparison, SiteResults


def sites_json(results: SiteResults | None) -> dict[str, Any]:
    """Members ``sites`` and ``site_confounding`` of ``metrics.json``; none where the sites are not known."""
    if results is None:
        return {}
    auroc, probe, robustness, comparison = results.auroc, results.probe, results.robustness, results.comparison
    summary = {"auroc": auroc.overall, "auroc_within_sites": auroc.within, "difference": auroc.difference}
    details: dict[str, Any] = {"split": results.split, "bags_without_site": results.without_site}
    if probe is not None and robustness is not None:
        summary |= {"probe_balanced_accuracy": probe.balanced_accuracy, "robustness_index": robustness.index}
        details |= {
            "probe_chance": nan_to_none(probe.chance),
            "probe_left_out": list(probe.left_out),
            "robustness_chance": nan_to_none(robustness.chance),
            "neighbours": robustness.neighbours,
        }
    if comparison is not None:
        details["comparison"] = _comparison_json(comparison)
    of_sites = {
        name: {
            "patients": site.patients,
            "of_class": list(site.of_class),
            **metric_entries({"auroc": site.auroc, "accuracy": site.accuracy}, {}),
        }
        for name, site in results.of_sites.items()
    }
    return {"sites": of_sites, "site_confounding": metric_entries(summary, {}) | details}


def _comparison_json(comparison: RunComparison) -> dict[str, Any]:
    estimates = {
        "auroc": comparison.this_auroc, "other_auroc": comparison.other_auroc, "difference": comparison.difference
    }  # fmt: skip
    return {
        "other": comparison.other,
        "split_by": comparison.split_by[0],
        "other_split_by": comparison.split_by[1],
        "bags": comparison.bags,
        "sites": comparison.sites,
        **metric_entries(estimates, {}),
    }
