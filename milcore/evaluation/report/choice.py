"""Choice of the slides whose pictures a report shows.

Figures and tables are of all slides; pictures of many thousands would be more than a browser opens.
"""

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np

ALL_UP_TO = 500
CHOSEN = 300
RULES = 5


class ScoredSlide(NamedTuple):
    """A test slide with its label and the probability of every class."""

    slide_id: str
    label: int
    probabilities: tuple[float, ...]

    @property
    def error(self) -> float:
        """``1 - probability of the true class``."""
        return 1.0 - self.probabilities[self.label]

    def margin(self, threshold: float | None) -> float:
        """Distance of the call to another one, in probability.

        Args:
            threshold: of the positive class of two; None where the likeliest class is called.
        """
        if threshold is not None:
            return abs(self.probabilities[1] - threshold)
        first, second = sorted(self.probabilities, reverse=True)[:2]
        return first - second


def choose_slides(
    slides: Sequence[ScoredSlide], classes: Sequence[str], threshold: float | None, seed: int
) -> dict[str, str]:
    """Reason for the pictures of each chosen slide, by its id.

    All slides, without a reason, where they are few. Of more, a fifth each have the largest error, lie closest to
    another call, and are drawn at random; two fifths are the likeliest of each class. A slide that two rules choose
    counts for the first, and the second goes on to its next.

    Args:
        slides: of the test split.
        classes: names, by label.
        threshold: as in ``ScoredSlide.margin``.
        seed: of the random draw.
    """
    if len(slides) <= ALL_UP_TO:
        return {slide.slide_id: "" for slide in slides}
    chosen: dict[str, str] = {}
    for reason, count, order in _orders(slides, classes, threshold, seed):
        new = (slide_id for slide_id in order if slide_id not in chosen)
        chosen |= dict.fromkeys(islice(new, count), reason)
    return chosen


def _orders(
    slides: Sequence[ScoredSlide], classes: Sequence[str], threshold: float | None, seed: int
) -> Iterator[tuple[str, int, list[str]]]:
    """Reason of each rule, number of slides it chooses, ids in its order."""
    slides = sorted(slides, key=lambda slide: slide.slide_id)
    share = CHOSEN // RULES
    yield "largest error", share, _by(slides, [-slide.error for slide in slides])
    yield "least certain call", share, _by(slides, [slide.margin(threshold) for slide in slides])
    for k, name in enumerate(classes):
        order = _by(slides, [-slide.probabilities[k] for slide in slides])
        yield f"likeliest {name}", max(1, 2 * share // len(classes)), order
    random = np.random.default_rng(seed).permutation(len(slides))
    yield "drawn at random", share, [slides[k].slide_id for k in random]


def _by(slides: Sequence[ScoredSlide], values: Sequence[float]) -> list[str]:
    """Ids in order of a value, the least first."""
    return [slides[k].slide_id for k in np.argsort(values, kind="stable")]
