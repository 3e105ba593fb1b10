"""Metrics by site against brute force over pairs and neighbours."""

import itertools
import math

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from milcore.metrics.sites import (
    NEIGHBOURS,
    SitePredictions,
    auroc_within_sites,
    metrics_by_site,
    paired_aurocs,
    probe_sites,
    robustness_index,
)


def cohort(bags: int = 90, classes: int = 2, seed: int = 4) -> SitePredictions:
    """Bags of three sites, two a patient, with scores on a grid so that some are equal."""
    random = np.random.default_rng(seed)
    patient = np.arange(bags) // 2
    score = random.integers(1, 9, (bags, classes)).astype(float)
    return SitePredictions(
        labels=random.integers(0, classes, bags),
        probability=score / score.sum(axis=1, keepdims=True),
        patients=[f"p{k:02d}" for k in patient],
        sites=[("Bonn", "Kiel", "Rome")[k % 3] for k in patient],
    )


def order(positive: float, negative: float) -> float:
    return 1.0 if positive > negative else 0.5 if positive == negative else 0.0


def area_of_pairs(bags: SitePredictions, label: int, *, same_site: bool) -> float:
    places = range(len(bags.labels))
    pairs = [
        order(bags.probability[i, label], bags.probability[j, label])
        for i, j in itertools.product(places, places)
        if bags.labels[i] == label != bags.labels[j] and (not same_site or bags.sites[i] == bags.sites[j])
    ]
    return float(np.mean(pairs))


@pytest.mark.parametrize("classes", [2, 3])
def test_auroc_within_sites_is_the_share_of_pairs_of_one_site_in_order(classes: int) -> None:
    bags = cohort(classes=classes)
    found = auroc_within_sites(bags, seed=0)
    labels = [1] if classes == 2 else range(classes)
    assert found.overall.value == pytest.approx(np.mean([area_of_pairs(bags, c, same_site=False) for c in labels]))
    assert found.within.value == pytest.approx(np.mean([area_of_pairs(bags, c, same_site=True) for c in labels]))
    assert found.difference.value == pytest.approx(found.overall.value - found.within.value)
    assert found.difference.low < found.difference.value < found.difference.high


def test_scores_of_the_site_alone_are_worth_nothing_within_sites() -> None:
    site, place = np.repeat(np.arange(6), 40), np.tile(np.arange(40), 6)
    labels = ((place >= 8) == (site % 2 == 0)).astype(np.int64)
    positive = (site % 2 == 0) * 0.5 + np.random.default_rng(7).uniform(0, 0.4, 240)
    bags = SitePredictions(
        labels, np.column_stack([1 - positive, positive]), [f"p{k}" for k in range(240)], [f"site {k}" for k in site]
    )
    found = auroc_within_sites(bags, seed=0)
    assert found.within.low < 0.5 < found.within.high
    assert found.difference.low > 0


def test_sites_of_one_class_each_have_no_pair_within() -> None:
    bags = cohort()
    bags = bags._replace(labels=(np.asarray(bags.sites) == "Rome").astype(np.int64))
    found = auroc_within_sites(bags, seed=0)
    assert math.isnan(found.within.value)
    assert {each.reason for each in (found.overall, found.within, found.difference)} == {
        "no site has bags of two classes"
    }


def test_a_site_of_one_class_counts_neither_over_the_sites_nor_within() -> None:
    """Its bags are told apart from those of other sites, which is no sign that the others' site is read."""
    bags, others = cohort(), 30
    more = SitePredictions(
        labels=np.concatenate([bags.labels, np.zeros(others, np.int64)]),
        probability=np.concatenate([bags.probability, np.tile([1.0, 0.0], (others, 1))]),
        patients=[*bags.patients, *(f"q{k}" for k in range(others))],
        sites=[*bags.sites, *["Ulm"] * others],
    )
    assert auroc_within_sites(more, seed=0) == auroc_within_sites(bags, seed=0)


def test_metrics_of_a_site_are_those_of_its_bags_alone() -> None:
    bags = cohort()
    predicted = bags.probability.argmax(axis=1)
    of_sites = dict(metrics_by_site(bags, predicted))
    assert list(of_sites) == ["Bonn", "Kiel", "Rome"]
    members = np.asarray(bags.sites) == "Kiel"
    kiel = of_sites["Kiel"]
    assert (kiel.patients, sum(kiel.of_class)) == (15, 30)
    assert kiel.auroc.value == pytest.approx(roc_auc_score(bags.labels[members], bags.probability[members, 1]))
    assert kiel.accuracy.value == pytest.approx((predicted == bags.labels)[members].mean())


def test_two_models_are_compared_in_the_same_resamples_of_sites() -> None:
    bags = cohort()
    same = paired_aurocs(bags, bags, seed=0)
    assert (same[2].value, same[2].low, same[2].high) == (0, 0, 0)
    sure = bags._replace(probability=np.eye(2)[bags.labels])
    one, other, difference = paired_aurocs(sure, bags, seed=0)
    assert one.value == 1
    assert other.value == pytest.approx(roc_auc_score(bags.labels, bags.probability[:, 1]))
    assert difference.value == pytest.approx(1 - other.value)
    # three sites: each of the ten multisets of three is a resample, so the ends are AUROCs of such
    assert difference.low == pytest.approx(1 - other.high)


def test_the_probe_names_sites_that_show_and_guesses_those_that_do_not() -> None:
    random, bags = np.random.default_rng(2), cohort(bags=180)
    names, site = np.unique(bags.sites, return_inverse=True)
    noise = random.normal(size=(180, 8))
    shown = probe_sites(noise + 12 * np.eye(3, 8)[site], bags.sites, bags.patients, seed=0)
    assert shown.balanced_accuracy.value == 1
    assert shown.chance == pytest.approx(1 / len(names))
    hidden = probe_sites(noise, bags.sites, bags.patients, seed=0)
    assert hidden.balanced_accuracy.low < hidden.chance < hidden.balanced_accuracy.high


def test_the_probe_never_tests_a_patient_that_it_was_fitted_on() -> None:
    """Bags of a patient are alike and patients differ, so a probe that saw the patient would name the site."""
    random = np.random.default_rng(3)
    patients = np.repeat(np.arange(40), 4)
    embeddings = 20 * random.normal(size=(40, 60))[patients] + random.normal(size=(160, 60)) * 0.01
    sites = ["AB"[k % 2] for k in patients]
    found = probe_sites(embeddings, sites, [f"p{k}" for k in patients], seed=0)
    assert found.balanced_accuracy.value < 0.75


def test_the_probe_leaves_out_sites_with_fewer_patients_than_folds() -> None:
    bags = cohort(bags=60)
    few = [("Ulm" if k < 8 else site) for k, site in enumerate(bags.sites)]
    embeddings = np.random.default_rng(0).normal(size=(60, 4))
    assert probe_sites(embeddings, few, bags.patients, seed=0).left_out == ("Ulm",)
    none = probe_sites(embeddings[:8], few[:8], bags.patients[:8], seed=0)
    assert math.isnan(none.balanced_accuracy.value)
    assert none.balanced_accuracy.reason == "fewer than two sites have 5 patients"


def test_the_robustness_index_counts_neighbours_of_other_patients() -> None:
    bags = cohort()
    embeddings = np.random.default_rng(5).normal(size=(90, 6))
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    counts = {True: 0, False: 0}
    for i in range(90):
        others = [j for j in range(90) if bags.patients[j] != bags.patients[i]]
        for j in sorted(others, key=lambda j: -unit[i] @ unit[j])[:NEIGHBOURS]:
            same_class, same_site = bags.labels[i] == bags.labels[j], bags.sites[i] == bags.sites[j]
            if same_class != same_site:
                counts[bool(same_class)] += 1
    found = robustness_index(embeddings, bags.labels, bags.sites, bags.patients, seed=0)
    assert found.neighbours == NEIGHBOURS
    assert found.index.value == pytest.approx(counts[True] / (counts[True] + counts[False]))
    assert found.index.low < found.chance < found.index.high


@pytest.mark.long
def test_resampled_sites_cover_chance_at_new_sites(monkeypatch: pytest.MonkeyPatch) -> None:
    """A linear model that can only read sites, in 60 cohorts whose seeds and bound were fixed before the count.

    Resampled patients cover it far less often: all bags of a new site are scored alike, so patients are no units.
    """
    monkeypatch.setattr("milcore.metrics.sites.RESAMPLES", 400)
    covered = {"site": 0, "patient": 0}
    for seed in range(2000, 2060):
        bags = predictions_at_new_sites(np.random.default_rng(seed))
        for unit in covered:
            units = bags if unit == "site" else bags._replace(sites=bags.patients)
            estimate, _, _ = paired_aurocs(units, units, seed=seed)
            covered[unit] += estimate.low <= 0.5 <= estimate.high
    assert covered["site"] >= 0.85 * 60
    assert covered["patient"] < 0.6 * 60


def predictions_at_new_sites(random: np.random.Generator) -> SitePredictions:
    """16 sites of 12 patients whose labels go with the site, scored by models of four folds of whole sites."""
    site, place = np.repeat(np.arange(16), 12), np.tile(np.arange(12), 16)
    labels = ((place > 0) == (site % 2 == 0)).astype(np.int64)
    features = 3 * random.normal(size=(16, 16))[site] + random.normal(size=(192, 16))
    of_even, of_odd = random.permutation(8) % 4, random.permutation(8) % 4
    fold = np.where(site % 2 == 0, of_even[site // 2], of_odd[site // 2])
    positive = np.zeros(192)
    for held_out in range(4):
        test = fold == held_out
        model = LogisticRegression(max_iter=10_000).fit(features[~test], labels[~test])
        positive[test] = model.predict_proba(features[test])[:, 1]
    probability = np.column_stack([1 - positive, positive])
    return SitePredictions(labels, probability, [f"p{k}" for k in range(192)], [f"site {k}" for k in site])


@pytest.mark.parametrize(("shown", "expected"), [("class", 1.0), ("site", 0.0)])
def test_the_robustness_index_is_one_for_the_class_and_zero_for_the_site(shown: str, expected: float) -> None:
    bags = cohort()
    group = bags.labels if shown == "class" else np.unique(bags.sites, return_inverse=True)[1]
    embeddings = 50 * np.eye(3)[group] + np.random.default_rng(0).normal(size=(90, 3))
    assert robustness_index(embeddings, bags.labels, bags.sites, bags.patients, seed=0).index.value == expected


def test_blocks_of_bags_give_the_same_index(monkeypatch: pytest.MonkeyPatch) -> None:
    bags, embeddings = cohort(), np.random.default_rng(5).normal(size=(90, 6))
    whole = robustness_index(embeddings, bags.labels, bags.sites, bags.patients, seed=0)
    monkeypatch.setattr("milcore.metrics.sites.MOST_PAIRS", 700)
    assert robustness_index(embeddings, bags.labels, bags.sites, bags.patients, seed=0) == whole
