"""Which slides have pictures in a report: all of few, of many those that five rules choose."""

from collections import Counter

from milcore.evaluation.report.choice import ALL_UP_TO, CHOSEN, ScoredSlide, choose_slides

SHARE = CHOSEN // 5


def scored(slides: int) -> list[ScoredSlide]:
    """Slides of the label 1 whose probability rises evenly from 0."""
    return [ScoredSlide(f"s{k:05d}", 1, (1 - k / slides, k / slides)) for k in range(slides)]


def test_few_slides_are_all_shown_without_a_reason() -> None:
    assert choose_slides(scored(ALL_UP_TO), ("n", "t"), 0.5, 0) == {f"s{k:05d}": "" for k in range(ALL_UP_TO)}


def test_of_many_each_rule_chooses_its_share() -> None:
    chosen = choose_slides(scored(10_000), ("n", "t"), 0.5, 0)
    assert Counter(chosen.values()) == dict.fromkeys(
        ("largest error", "least certain call", "likeliest n", "likeliest t", "drawn at random"), SHARE
    )
    of = {reason: {int(name[1:]) for name, why in chosen.items() if why == reason} for reason in chosen.values()}
    assert of["largest error"] == set(range(SHARE))
    assert of["least certain call"] == set(range(5000 - SHARE // 2, 5000 + SHARE // 2))
    assert of["likeliest n"] == set(range(SHARE, 2 * SHARE)), "those of the largest error are chosen already"
    assert of["likeliest t"] == set(range(10_000 - SHARE, 10_000))
    assert max(of["drawn at random"]) - min(of["drawn at random"]) > 5000


def test_the_choice_hangs_on_seed_and_slides_alone() -> None:
    slides = scored(1000)
    chosen = choose_slides(slides, ("n", "t"), 0.5, 3)
    assert choose_slides(slides[::-1], ("n", "t"), 0.5, 3) == chosen
    assert choose_slides(slides, ("n", "t"), 0.5, 4) != chosen


def test_without_a_threshold_the_least_certain_has_two_likely_classes() -> None:
    sure = [ScoredSlide(f"s{k:03d}", 0, (0.8, 0.1, 0.1)) for k in range(600)]
    unsure = [ScoredSlide(f"u{k:03d}", 0, (0.46, 0.44, 0.10)) for k in range(SHARE)]
    wrong = [ScoredSlide(f"w{k:03d}", 0, (0.01, 0.01, 0.98)) for k in range(SHARE)]
    chosen = choose_slides([*sure, *unsure, *wrong], ("a", "b", "c"), None, 0)
    assert {name for name, reason in chosen.items() if reason == "largest error"} == {w.slide_id for w in wrong}
    assert {name for name, reason in chosen.items() if reason == "least certain call"} == {u.slide_id for u in unsure}
    assert Counter(chosen.values())["likeliest b"] == 2 * SHARE // 3
