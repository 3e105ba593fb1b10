"""Bags of features whose survival times follow a hazard that planted instances set.

The level of a bag shifts the first feature of all its instances; planted ones lie above the others of their own bag.
So no value of a single instance tells whether it is planted, only a comparison within the bag. The second feature is a
grade: that of the planted instances is the hazard, that of the others is as wide and has nothing to do with it.

A mean over instances of any function of one instance weighs planted ones and others of the same features alike. A
softmax of the first feature does not change with the level, so attention can weigh the planted alone.

Axis words: patient, instance, feature.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

# distance of planted instances from the others of their bag, and of the levels -1 and 1 from 0; in standard deviations
# of an instance, as the distance of the grades -1 and 1 from 0
APART = 6.0
LEVEL = 6.0
GRADE = 3.0


class SurvivalPlan(NamedTuple):
    """Settings of a cohort of synthetic bags with survival times.

    Args:
        patients: how many, a bag each.
        instances: fewest and most of a bag.
        planted: fewest and most planted instances of a bag.
        features: of an instance, at least 2; all but two are noise.
        log_hazard: of grade 1 over grade 0; 0 makes a cohort without signal.
        shape: of the Weibull baseline; 1 is a constant hazard.
        scale: time by which all but ``1 / e`` of the patients of grade 0 have the event.
        censored: share of patients whose follow-up ends before the event, 0 to below 1.
        seed: the same seed gives the same cohort.
    """

    patients: int = 800
    instances: tuple[int, int] = (20, 40)
    planted: tuple[int, int] = (3, 6)
    features: int = 8
    log_hazard: float = 2.0
    shape: float = 1.3
    scale: float = 1000.0
    censored: float = 0.3
    seed: int = 0


class SurvivalBags(NamedTuple):
    """A cohort of synthetic bags and its truths.

    Args:
        features: of each patient's instances.
        planted: True for planted instances.
        risk: true log hazard of each patient, relative to grade 0.
        time: to the event or to censoring, above 0.
        event: True where the event came at ``time``.
    """

    features: tuple[Float[np.ndarray, "instance feature"], ...]
    planted: tuple[Bool[np.ndarray, " instance"], ...]
    risk: Float[np.ndarray, " patient"]
    time: Float[np.ndarray, " patient"]
    event: Bool[np.ndarray, " patient"]


def survival_bags(plan: SurvivalPlan) -> SurvivalBags:
    """Draw a cohort.

    Grades g are uniform on -1 to 1 and the log hazard is ``b g``. Event times are Weibull,
    ``scale (-log(u) exp(-b g))^(1 / shape)``; censoring times are exponential and independent of the grade, with the
    mean that censors the share that is asked for.

    Source of the times: Bender, Augustin, Blettner 2005, Statistics in Medicine 24:1713-1723, table II.
    """
    random = np.random.default_rng(plan.seed)
    grade = random.uniform(-1.0, 1.0, plan.patients)
    bags = [_bag(plan, g, random) for g in grade]
    risk = plan.log_hazard * grade
    event_time = plan.scale * (random.exponential(size=plan.patients) * np.exp(-risk)) ** (1.0 / plan.shape)
    censoring = _censoring(event_time, plan.censored, random)
    features, planted = zip(*bags, strict=True)
    return SurvivalBags(features, planted, risk, np.minimum(event_time, censoring), event_time <= censoring)


def _bag(plan: SurvivalPlan, grade: float, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Features of one bag, and which of its instances are planted."""
    count = int(random.integers(*plan.instances, endpoint=True))
    features = random.normal(size=(count, plan.features)).astype(np.float32)
    places = random.choice(count, int(random.integers(*plan.planted, endpoint=True)), replace=False)
    planted = np.isin(np.arange(count), places)
    level, grade_of_others = random.uniform(-1.0, 1.0, 2)
    features[:, 0] += LEVEL * level + APART * planted
    features[:, 1] += GRADE * np.where(planted, grade, grade_of_others)
    return features, planted


def _censoring(
    event_time: Float[np.ndarray, " patient"], share: float, random: np.random.Generator
) -> Float[np.ndarray, " patient"]:
    """Exponential times of which the share lies below the event times."""
    unit = random.exponential(size=len(event_time))
    if share == 0.0:
        return np.full(len(event_time), np.inf)
    # a patient is censored where mean * unit < time: the mean is a quantile of time / unit
    mean: float = np.quantile(event_time / unit, 1.0 - share)
    return unit * mean
