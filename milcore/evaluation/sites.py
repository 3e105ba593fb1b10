"""Results by site of the bags that a run left out."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from milcore.cohort.site_splits import is_by_site, slide_sites
from milcore.errors import InputError
from milcore.evaluation.decision import DecisionRule
from milcore.evaluation.report.site_contents import RunComparison, SiteResults
from milcore.evaluation.run_predictions import RunPredictions
from milcore.metrics.sites import (
    SiteAuroc,
    SitePredictions,
    auroc_within_sites,
    metrics_by_site,
    paired_aurocs,
    probe_sites,
    robustness_index,
)
from milcore.mil.bags.bags import BagEntry
from milcore.mil.instance_encoders.features import FeatureEncoder
from milcore.runtime import storage
from milcore.training.run_folder import Run

ROWS = 8192


def site_results(run: RunPredictions, rule: DecisionRule, other: Run | None) -> SiteResults | None:
    """Measure the bags that a run left out by site.

    None where the manifest names fewer than two of their sites.

    Args:
        run: with its predictions.
        rule: that calls classes, of the validation split.
        other: a run to compare with, such as the same one with patients instead of sites kept whole.

    Raises:
        InputError: a run to compare with is named, but the bags of the two cannot be compared.
    """
    split = "test" if run.bags.split("test") else "val"
    indices = run.bags.split(split) if split == "test" or run.spec.folds else []
    sites = slide_sites(run.store.manifest())
    known = [index for index in indices if sites.get(run.bags.entries[index].slides[0])]
    bags = _predictions(run, known, sites)
    if len(set(bags.sites)) < 2:
        if other is not None:
            raise InputError(
                f"compare_with: expected bags of two sites or more, which the run left out, got {len(set(bags.sites))} "
                "site(s); allowed: a store whose manifest has the column site; ingest or import again with it"
            )
        return None
    seed = run.spec.train.seed
    auroc = auroc_within_sites(bags, seed)
    embeddings = _embeddings(run, known)
    comparison = None if other is None else _compare(run, bags, known, other)
    return SiteResults(
        split=split,
        without_site=len(indices) - len(known),
        of_sites=dict(metrics_by_site(bags, rule.predict(bags.probability))),
        auroc=auroc,
        probe=None if embeddings is None else probe_sites(embeddings, bags.sites, bags.patients, seed),
        robustness=(
            None if embeddings is None else robustness_index(embeddings, bags.labels, bags.sites, bags.patients, seed)
        ),
        comparison=comparison,
        warnings=tuple(_warnings(auroc, comparison)),
    )


def _predictions(run: RunPredictions, indices: Sequence[int], sites: dict[str, str]) -> SitePredictions:
    entries = [run.bags.entries[index] for index in indices]
    probability = np.array([run.predictions[index].probability for index in indices], dtype=np.float64)
    return SitePredictions(
        labels=np.array([entry.label for entry in entries], dtype=np.int64),
        probability=probability.reshape(len(entries), len(run.spec.classes)),
        patients=[entry.patient_id for entry in entries],
        sites=[sites[entry.slides[0]] for entry in entries],
    )


def _embeddings(run: RunPredictions, indices: Sequence[int]) -> Float[np.ndarray, "bag feature"] | None:
    """Mean of each bag's features, weighted by its attention.

    Features are the same for the models of all folds. None where models read patches.
    """
    if not all(isinstance(model.encoder, FeatureEncoder) for model in run.models):
        return None
    batches = run.bags.batches([index] for index in indices)
    rows = []
    for index, batch in zip(indices, batches, strict=True):
        weight = torch.from_numpy(run.predictions[index].attention).float()
        parts = [
            weight[start : start + ROWS] @ batch.instances[start : start + ROWS].float()
            for start in range(0, len(weight), ROWS)
        ]
        rows.append(torch.stack(parts).sum(dim=0))
    return torch.stack(rows).double().numpy()


def _compare(run: RunPredictions, bags: SitePredictions, indices: Sequence[int], other: Run) -> RunComparison:
    """Compare with another run on the bags that both left out.

    Raises:
        InputError: the other is not finished or evaluated, has other classes, or has left out fewer than two sites of
            these bags.
    """
    if not other.is_finished():
        raise InputError(f"compare_with: expected a finished run, got {other.uri}; finish it with milcore train")
    if not storage.exists(other.predictions_uri):
        raise InputError(
            f"compare_with: expected a run with predictions, got none in {other.uri}; run milcore evaluate on it first"
        )
    spec = other.spec()
    if spec.classes != run.spec.classes:
        raise InputError(
            f"compare_with: expected classes {', '.join(run.spec.classes)}, got {', '.join(spec.classes) or 'none'} in "
            f"{other.uri}; name a run on the same labels"
        )
    rows = {row["slide_id"]: row for row in other.predictions().to_pylist() if _is_left_out(row, spec.folds)}
    keys = [_key(run.bags.entries[index]) for index in indices]
    shared = np.array(
        [k for k, key in enumerate(keys) if key in rows and rows[key]["label"] == bags.labels[k]], dtype=np.int64
    )
    these = bags.of_bags(shared)
    if len(set(these.sites)) < 2:
        raise InputError(
            f"compare_with: expected bags of two sites or more that both runs left out, got {len(shared)} bag(s) of "
            f"{len(set(these.sites))} site(s) in {other.uri}; name a run on the same slides and labels, best with "
            "--folds and --test-fraction 0, which leave out every bag once"
        )
    probability = np.array([_probabilities(rows[keys[k]], spec.classes) for k in shared])
    others = these._replace(probability=probability)
    of_other, of_this, difference = paired_aurocs(others, these, run.spec.train.seed)
    return RunComparison(
        other=other.uri.rsplit("/", 1)[-1],
        split_by=(_split_by(Run(run.uri)), _split_by(other)),
        bags=len(shared),
        sites=len(set(these.sites)),
        this_auroc=of_this,
        other_auroc=of_other,
        difference=difference,
    )


def _key(entry: BagEntry) -> str:
    """The bag's ``slide_id`` in ``predictions.parquet``."""
    return ";".join(entry.slides)


def _is_left_out(row: dict[str, Any], folds: int) -> bool:
    """True for a bag that the model which predicted it was not trained on."""
    return bool(row["split"] == "test" or (folds and row["split"] == "val"))


def _probabilities(row: dict[str, Any], classes: Sequence[str]) -> list[float]:
    if len(classes) == 2:
        return [1.0 - row["probability"], row["probability"]]
    return [row[f"probability_{name}"] for name in classes]


def _split_by(run: Run) -> str:
    return "site" if is_by_site(run.splits()) else "patient"


def _warnings(auroc: SiteAuroc, comparison: RunComparison | None) -> list[str]:
    """Lines for differences whose interval excludes 0."""
    lines = []
    if auroc.difference.low > 0:
        lines.append(
            f"AUROC is {auroc.overall} between bags of any sites, but {auroc.within} between bags of the same site, "
            f"{auroc.difference} less: the model may read the site in place of the class"
        )
    if comparison is not None and comparison.split_by == ("site", "patient") and comparison.difference.low > 0:
        lines.append(
            f"AUROC is {comparison.this_auroc} here, where sites are kept whole, but {comparison.other_auroc} in "
            f"{comparison.other}, where patients are, on the same {comparison.bags} bags, a difference of "
            f"{comparison.difference}: the figure of {comparison.other} does not hold at new sites"
        )
    return lines
