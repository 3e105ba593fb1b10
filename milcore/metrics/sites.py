"""Metrics by site, and the site in embeddings. No torch, no I/O.

A model may read the site (its stain, its scanner) in place of the disease where the two go together. Then it ranks bags
of different sites well and those of one site badly; a site's bags lie near each other, whatever their class.

Axis words: bag, class, feature, patient, resample.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from milcore.metrics.bootstrap import weighted_auroc
from milcore.metrics.classification import Estimate, estimate
from milcore.metrics.resamples import RESAMPLES, patient_weights, ratio
from milcore.metrics.wilson import auroc_interval, wilson

PROBE_FOLDS = 5
NEIGHBOURS = 10
NO_PAIR = "no site has bags of two classes"
NO_PROBE = f"fewer than two sites have {PROBE_FOLDS} patients"
NO_NEIGHBOUR = "no bag has a neighbour of its class from another site, or of its site from another class"
# similarities in memory at a time
MOST_PAIRS = 4_000_000


class SitePredictions(NamedTuple):
    """Predicted bags of several sites.

    Args:
        labels: class of each bag.
        probability: of every class.
        patients: the patient of each bag.
        sites: the site of each bag.
    """

    labels: Int[np.ndarray, " bag"]
    probability: Float[np.ndarray, "bag class"]
    patients: Sequence[str]
    sites: Sequence[str]

    def of_bags(self, bags: Bool[np.ndarray, " bag"] | Int[np.ndarray, " place"]) -> "SitePredictions":
        """Those of some bags."""
        patients, sites = np.asarray(self.patients)[bags].tolist(), np.asarray(self.sites)[bags].tolist()
        return SitePredictions(self.labels[bags], self.probability[bags], patients, sites)


@dataclass(frozen=True, slots=True)
class SiteMetrics:
    """Metrics of the bags of one site, with score intervals.

    Args:
        patients: number of them.
        of_class: number of bags of each class.
        auroc: of two classes, or the mean over more, each against the rest, with Newcombe's interval.
        accuracy: share of bags that are called right, with Wilson's interval.
    """

    patients: int
    of_class: tuple[int, ...]
    auroc: Estimate
    accuracy: Estimate


@dataclass(frozen=True, slots=True)
class SiteAuroc:
    """AUROC over the bags of all sites, within sites, and the difference.

    Args:
        overall: pairs of a positive and a negative bag from any sites that have bags of two classes.
        within: pairs from the same site only.
        difference: ``overall - within``, in the same resamples of the patients.
    """

    overall: Estimate
    within: Estimate
    difference: Estimate


def metrics_by_site(bags: SitePredictions, predicted: Int[np.ndarray, " bag"]) -> Iterator[tuple[str, SiteMetrics]]:
    """Metrics of each site alone, by its name.

    Args:
        bags: of all sites.
        predicted: class that each bag is called.
    """
    right = (predicted == bags.labels).astype(np.float64)
    for site in sorted(set(bags.sites)):
        members = np.asarray(bags.sites) == site
        of_site = bags.of_bags(members)
        yield (
            site,
            SiteMetrics(
                patients=len(set(of_site.patients)),
                of_class=tuple(np.bincount(of_site.labels, minlength=bags.probability.shape[1]).tolist()),
                auroc=auroc_interval(of_site.labels, of_site.probability, list(of_site.patients)),
                accuracy=wilson(float(right[members].mean()), of_site.patients),
            ),
        )


def auroc_within_sites(bags: SitePredictions, seed: int) -> SiteAuroc:
    """AUROC over pairs of any sites beside that of pairs of the same site.

    Both are of the bags of sites that have two classes or more: a site of one class has no pair within.

    Within sites it is ``sum_s p_s n_s A_s / sum_s p_s n_s`` with the AUROC A_s and the numbers p_s of positives and n_s
    of negatives of site s: the chance that of a positive and a negative of one site the positive scores higher. With
    more than two classes it is the mean over them, each against the rest.
    """
    names = np.asarray(bags.sites)
    mixed = [site for site in np.unique(names) if len(np.unique(bags.labels[names == site])) > 1]
    if not mixed:
        none = Estimate(math.nan, reason=NO_PAIR)
        return SiteAuroc(none, none, none)
    bags = bags.of_bags(np.isin(names, mixed))
    resamples = patient_weights(list(bags.patients), RESAMPLES, seed)
    weights = np.concatenate([np.ones((1, len(bags.labels))), resamples])
    overall, within = (_mean_over_classes(bags, weights, by_site=by_site) for by_site in (False, True))
    whole, of_sites, difference = (
        estimate(float(values[0]), values[1:]) for values in (overall, within, overall - within)
    )
    return SiteAuroc(whole, of_sites, difference)


def paired_aurocs(first: SitePredictions, second: SitePredictions, seed: int) -> tuple[Estimate, Estimate, Estimate]:
    """AUROC of two models on the same bags, and the first less the second.

    Intervals are of resampled sites: a model that reads sites is right or wrong about all bags of a site together, so
    sites are drawn, each with all its bags. With fewer than about ten sites such an interval is too narrow.

    Args:
        first: predictions of one model.
        second: those of the other for the same bags in the same order.
        seed: of the resampling.
    """
    weights = np.concatenate([np.ones((1, len(first.labels))), patient_weights(list(first.sites), RESAMPLES, seed)])
    of_first, of_second = (_mean_over_classes(bags, weights, by_site=False) for bags in (first, second))
    values = (of_first, of_second, of_first - of_second)
    one, other, difference = (estimate(float(each[0]), each[1:]) for each in values)
    return one, other, difference


def _mean_over_classes(
    bags: SitePredictions, weights: Float[np.ndarray, "resample bag"], *, by_site: bool
) -> Float[np.ndarray, " resample"]:
    """AUROC of class 1 of two, or the mean over defined classes."""
    classes = bags.probability.shape[1]
    groups = [np.asarray(bags.sites) == site for site in sorted(set(bags.sites))]
    groups = groups if by_site else [np.ones(len(bags.labels), bool)]
    areas = np.stack(
        [_area_of_pairs(bags, weights, groups, label) for label in ([1] if classes == 2 else range(classes))]
    )
    return _mean_of_defined(areas)


def _mean_of_defined(values: Float[np.ndarray, "part resample"]) -> Float[np.ndarray, " resample"]:
    """Mean over the parts where a metric is defined; else NaN."""
    defined = ~np.isnan(values)
    return ratio(np.where(defined, values, 0.0).sum(axis=0), defined.sum(axis=0).astype(np.float64))


def _area_of_pairs(
    bags: SitePredictions, weights: Float[np.ndarray, "resample bag"], groups: list[np.ndarray], label: int
) -> Float[np.ndarray, " resample"]:
    """Share of pairs within groups whose scores are in order.

    A pair is of a bag of the class and one of the rest; ties count half.
    """
    right, pairs = np.zeros(len(weights)), np.zeros(len(weights))
    positive = (bags.labels == label).astype(np.int64)
    for group in groups:
        of_group, of_class = weights[:, group], positive[group]
        count = (of_group @ of_class) * (of_group @ (1 - of_class))
        area = weighted_auroc(of_group, of_class, bags.probability[group, label])
        right += np.where(count > 0, count * np.nan_to_num(area), 0.0)
        pairs += count
    return ratio(right, pairs)


class SiteProbe(NamedTuple):
    """Balanced accuracy with which a linear model names the site of a bag.

    Args:
        balanced_accuracy: mean over the sites of the share of their bags whose site is named.
        chance: of a guess, 1 over the number of sites; NaN where there is no probe.
        left_out: sites with fewer patients than folds.
    """

    balanced_accuracy: Estimate
    chance: float
    left_out: tuple[str, ...]


def probe_sites(
    embeddings: Float[np.ndarray, "bag feature"], sites: Sequence[str], patients: Sequence[str], seed: int
) -> SiteProbe:
    """Cross-validated logistic regression of the site on embeddings.

    Standardised on the training folds, L2 penalty of scikit-learn's default strength, sites weighted alike. All bags of
    a patient are in one of 5 folds. The interval is of resampled patients, with the predictions as they are.

    Args:
        embeddings: of bags, from a model or encoder that is the same for all of them.
        sites: of each bag.
        patients: of each bag.
        seed: of folds and resampling.
    """
    names, patient_names = np.asarray(sites), np.asarray(patients)
    few = [site for site in np.unique(names) if len(np.unique(patient_names[names == site])) < PROBE_FOLDS]
    kept = ~np.isin(names, few)
    names, patient_names = names[kept], patient_names[kept]
    known = np.unique(names)
    if len(known) < 2:
        return SiteProbe(Estimate(math.nan, reason=NO_PROBE), math.nan, tuple(map(str, few)))
    probe = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=10_000))
    folds = StratifiedGroupKFold(PROBE_FOLDS, shuffle=True, random_state=seed)
    right = (cross_val_predict(probe, embeddings[kept], names, groups=patient_names, cv=folds) == names).astype(float)
    weights = np.concatenate([np.ones((1, len(names))), patient_weights(patient_names.tolist(), RESAMPLES, seed)])
    of_sites = [(weights[:, members], right[members]) for members in (names == site for site in known)]
    accuracy = _mean_of_defined(np.stack([ratio(rows @ named, rows.sum(axis=1)) for rows, named in of_sites]))
    return SiteProbe(estimate(float(accuracy[0]), accuracy[1:]), 1 / len(known), tuple(map(str, few)))


@dataclass(frozen=True, slots=True)
class Robustness:
    """Robustness index of embeddings.

    Args:
        index: share of neighbours of the same class from another site among these and those of another class from the
            same site.
        chance: the same for neighbours drawn at random.
        neighbours: k, the number of neighbours of each bag.
    """

    index: Estimate
    chance: float
    neighbours: int


def robustness_index(
    embeddings: Float[np.ndarray, "bag feature"],
    labels: Int[np.ndarray, " bag"],
    sites: Sequence[str],
    patients: Sequence[str],
    seed: int,
) -> Robustness:
    """Robustness index ``R_k = SO / (SO + OS)`` of embeddings.

    Over the k most similar bags (cosine) of every bag, those of the same patient left out, SO counts the same class
    from another site, OS another class from the same site. 1: neighbours share the class, 0: the site. It depends on
    how classes and sites are mixed, so that ``chance`` stands beside it: 0.5 only where they are mixed evenly.
    Source: Kömen, de Jong, Hense et al. 2025, arXiv 2507.17845; theirs leaves out the same slide.

    Args:
        embeddings: of bags, from a model or encoder that is the same for all of them; none is all zeros.
        labels: class of each bag.
        sites: of each bag.
        patients: of each bag.
        seed: of the resampling of patients.
    """
    norms = np.linalg.norm(embeddings, axis=1, keepdims=True)
    unit = embeddings / np.where(norms > 0, norms, 1.0)
    site, patient = (np.unique(np.asarray(each), return_inverse=True)[1] for each in (sites, patients))
    count = len(labels)
    neighbours = min(NEIGHBOURS, count - int(np.bincount(patient).max()))
    if neighbours < 1:
        return Robustness(Estimate(math.nan, reason=NO_NEIGHBOUR), math.nan, 0)
    near, of_all = np.zeros((2, count)), np.zeros((2, count))
    step = max(1, MOST_PAIRS // count)
    for rows in (slice(start, start + step) for start in range(0, count, step)):
        other_patient = patient[rows, None] != patient
        similarity = np.where(other_patient, unit[rows] @ unit.T, -np.inf)
        nearest = np.argsort(-similarity, axis=1, kind="stable")[:, :neighbours]
        same_class, same_site = labels[rows, None] == labels, site[rows, None] == site
        for k, kind in enumerate((same_class & ~same_site & other_patient, ~same_class & same_site & other_patient)):
            near[k, rows] = np.take_along_axis(kind, nearest, axis=1).sum(axis=1)
            of_all[k, rows] = kind.sum(axis=1)
    weights = np.concatenate([np.ones((1, count)), patient_weights(list(patients), RESAMPLES, seed)])
    same, other = weights @ near[0], weights @ near[1]
    values = ratio(same, same + other)
    chance = ratio(of_all[:1].sum(axis=1), of_all.sum(keepdims=True)[0])
    return Robustness(estimate(float(values[0]), values[1:], NO_NEIGHBOUR), float(chance[0]), neighbours)
