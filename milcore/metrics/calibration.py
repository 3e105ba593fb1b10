"""Calibration error, reliability curve and temperature scaling of probabilities.

No torch, no I/O. Bins are of equal width on 0 to 1. Axis words: slide, resample, class.
"""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

ECE_BINS = 10
HOTTEST = 100.0
SMALLEST_PROBABILITY = 1e-7


class Temperature(NamedTuple):
    """Divisor of log-probabilities in temperature scaling, and how it was chosen."""

    value: float
    origin: str


def reliability(
    labels: Int[np.ndarray, " slide"], probability: Float[np.ndarray, " slide"], bins: int
) -> list[tuple[float, float, int]]:
    """(mean probability, share of positives, slides) of each bin that has slides."""
    index = _bin(probability, bins)
    members = [index == k for k in range(bins) if np.any(index == k)]
    return [(float(probability[k].mean()), float(labels[k].mean()), int(k.sum())) for k in members]


def calibration_error(
    weights: Float[np.ndarray, "resample slide"],
    labels: Int[np.ndarray, " slide"],
    probability: Float[np.ndarray, " slide"],
) -> Float[np.ndarray, " resample"]:
    """Expected calibration error (ECE) for every row of weights.

    ``sum_b |sum_(i in b) w_i (p_i - y_i)| / sum_i w_i``; NaN where all weights of a row are 0. Source: Naeini, Cooper,
    Hauskrecht 2015, with ten bins.
    """
    index = _bin(probability, ECE_BINS)
    gap = probability - labels
    gaps = sum(np.abs(weights @ np.where(index == k, gap, 0.0)) for k in range(ECE_BINS))
    total = weights.sum(axis=1)
    error: np.ndarray = np.divide(gaps, total, out=np.full(len(weights), math.nan), where=total != 0)
    return error


def fit_temperature(labels: Int[np.ndarray, " slide"], probability: Float[np.ndarray, "slide class"]) -> Temperature:
    """Temperature of least cross-entropy on validation; 1 where none is best.

    ``argmin_T - mean log softmax(log p / T)[label]``. Where all slides are predicted right, T goes to 0: the loss falls
    with sharper probabilities and does not measure calibration.

    Args:
        labels: class of each slide.
        probability: of every class.

    Source: Guo, Pleiss, Sun, Weinberger 2017, section 4.2.
    """
    if len(np.unique(labels)) < 2:
        return Temperature(1.0, "1 by default: the validation split holds fewer than two classes")
    logits = _logits(probability)
    own = logits[np.arange(len(labels)), labels]
    if np.all(own >= logits.max(axis=1)):
        return Temperature(1.0, "1 by default: every validation slide is called right, so no temperature is best")

    def loss(log_temperature: float) -> float:
        scaled = log_softmax(logits / math.exp(log_temperature), axis=1)
        return -float(scaled[np.arange(len(labels)), labels].mean())

    best = minimize_scalar(loss, bounds=(-math.log(HOTTEST), math.log(HOTTEST)), method="bounded")
    return Temperature(math.exp(best.x), "least loss on the validation split")


def calibrate(probability: Float[np.ndarray, "slide class"], temperature: float) -> Float[np.ndarray, "slide class"]:
    """Temperature scaling, ``softmax(log p / T)``.

    The order of a slide's classes stays, and of two classes that of slides; the confidence changes.
    """
    scaled: np.ndarray = softmax(_logits(probability) / temperature, axis=1)
    return scaled


def _logits(probability: Float[np.ndarray, "slide class"]) -> Float[np.ndarray, "slide class"]:
    logits: np.ndarray = np.log(np.maximum(probability, SMALLEST_PROBABILITY))
    return logits


def _bin(probability: Float[np.ndarray, " slide"], bins: int) -> Int[np.ndarray, " slide"]:
    index: np.ndarray = np.minimum((probability * bins).astype(np.int64), bins - 1)
    return index
