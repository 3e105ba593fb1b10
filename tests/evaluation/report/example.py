"""A small made-up report, for the tests of the report and for looking at it."""

import dataclasses

import numpy as np
import pyarrow as pa
import shapely

from milcore.evaluation.attention.maps import attention_table, half_mass, heat_layer, png
from milcore.evaluation.attention.patch_flipping import normalised_entropy
from milcore.evaluation.report import (
    Curve,
    FlippingCurves,
    PictureSizes,
    ReportData,
    ScoredSlide,
    ShownPatch,
    SlideView,
    SplitCount,
    SweepTable,
    choose_slides,
)
from milcore.evaluation.report.pictures import jpeg, rings
from milcore.metrics.calibration import reliability
from milcore.metrics.classification import Comparison, Estimate, choose_threshold, confusion, estimates
from milcore.metrics.curves import curve_bands, precision_recall, roc_curve
from milcore.metrics.wilson import ScoreIntervals, score_intervals

UNDEFINED = Estimate(float("nan"), reason="gives no score per patch")


def tissue(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    """Pink blobs on white."""
    y, x = np.arange(rows) / rows, np.arange(columns) / columns
    field = sum(
        np.outer(np.exp(-(((y - rng.uniform(0.2, 0.8)) * 6) ** 2)), np.exp(-(((x - rng.uniform(0.2, 0.8)) * 5) ** 2)))
        for _ in range(5)
    )
    pink = np.array([214, 150, 190], np.float32) + 14 * rng.standard_normal((rows, columns, 1), np.float32)
    return np.where(field[..., None] > 0.5, pink, 246).clip(0, 255).astype(np.uint8)


def slide_view(
    k: int, truth: tuple[int, int], probability: float, sizes: PictureSizes, rng: np.random.Generator
) -> SlideView:
    label, predicted = truth
    thumbnail = tissue(rng, sizes.thumbnail_edge * 3 // 4, sizes.thumbnail_edge)
    tile = 256.0
    coords = np.array([(int(x * tile), int(y * tile)) for y in range(23) for x in range(31)])
    column, row = ((coords + 128) * thumbnail.shape[1] // 8000).T
    coords = coords[thumbnail[row, column].mean(axis=1) < 230]
    centre = coords[rng.integers(len(coords))]
    score = rng.gamma(1.0, 0.4, len(coords)) + label * 5 * np.exp(-(((coords - centre) / 500.0) ** 2).sum(axis=1))
    weight = np.exp(score) / np.exp(score).sum()
    table = attention_table(coords, tile, weight, np.ones(len(coords)))
    order = np.argsort(-weight)
    most, least = (
        tuple(
            ShownPatch(
                int(coords[i][0]), int(coords[i][1]), tile, float(weight[i] * len(weight)),
                jpeg(tissue(rng, sizes.patch_edge, sizes.patch_edge), 82),
            )
            for i in places[: sizes.patches]
        )
        for places in (order, order[::-1])
    )  # fmt: skip
    region = shapely.Point(*(centre + 128.0)).buffer(600.0) if label else shapely.Polygon()
    heat = png(heat_layer(thumbnail.shape[:2], (8000, 6000), table))
    return SlideView(
        slide_name(k), f"case-{k:02d}", label, predicted, (1 - probability, probability), None, (8000, 6000), 0.5,
        len(coords), half_mass(weight), normalised_entropy(weight), 0.93 if label else None, jpeg(thumbnail, 80), heat,
        rings(region, 10.0), most, least,
    )  # fmt: skip


def example(slides: int) -> ReportData:
    """A report of so many test slides."""
    rng = np.random.default_rng(5)
    labels = np.arange(slides) % 2
    probability = np.clip(0.5 + (labels - 0.5) * 0.55 + rng.normal(0, 0.2, slides), 0.01, 0.99)
    threshold = choose_threshold(labels, probability)
    predicted = (probability >= threshold.value).astype(int)
    scored = [
        ScoredSlide(slide_name(k), int(labels[k]), (1 - float(probability[k]), float(probability[k])))
        for k in range(slides)
    ]
    choices = choose_slides(scored, ("normal", "tumour"), threshold.value, seed=0)
    sizes = PictureSizes.for_slides(len(choices))
    views = list[SlideView]()
    for k, slide in enumerate(scored):
        if slide.slide_id in choices or k == 0:
            view = slide_view(k, (slide.label, int(predicted[k])), slide.probabilities[1], sizes, rng)
            views.append(dataclasses.replace(view, choice=choices.get(slide.slide_id)))
        else:
            views.append(
                dataclasses.replace(
                    without_pictures(views[0]),
                    slide_id=slide.slide_id,
                    patient_id=f"case-{k:02d}",
                    label=slide.label,
                    predicted_class=int(predicted[k]),
                    probabilities=slide.probabilities,
                )
            )
    patients = [view.patient_id for view in views]
    metrics = estimates(labels, probability, patients, threshold.value, seed=0)
    metrics["localisation_auroc"] = Estimate(0.913, 0.861, 0.957)
    metrics["localisation_ap"] = Estimate(0.641, 0.52, 0.75)
    metrics["flipping_area"] = Estimate(0.212, 0.14, 0.29)
    score = score_intervals(labels, probability, predicted == 1, patients)
    positive = slides // 2
    roc_band, recall_band = curve_bands(labels, probability, patients, seed=0)
    return ReportData(
        title="camelyon-demo <run 1>",
        classes=("normal", "tumour"),
        bag="slide",
        counts=(SplitCount("train", 22, (13, 13)), SplitCount("test", slides, (slides - positive, positive))),
        metrics=metrics,
        score=ScoreIntervals(score, (), {}),
        auroc_delong=Estimate(metrics["auroc"].value, 0.71, 0.99),
        of_class=(),
        of_patients={},
        threshold=threshold,
        temperature=1.32,
        temperature_origin="least loss on the validation split",
        calibrated={"brier": metrics["brier"], "ece": metrics["ece"]},
        localised=positive - 1,
        not_localised={"case-01-s1": "no annotation"},
        warnings=(),
        sites=None,
        comparison=comparison(metrics | score),
        roc=(Curve("tumour", list(zip(*roc_curve(labels, probability)[:2], strict=True)), roc_band),),
        precision_recall=(Curve("tumour", precision_recall(labels, probability), recall_band),),
        confusion=confusion(labels, predicted, 2),
        reliability=reliability(labels, probability, 5),
        flipping=flipping(positive),
        history=history(),
        folds=0,
        sweep=SweepTable(
            trials(), "trial 3 is first but not separable; AUROC 0.000 above trial 2, standard error 0.010"
        ),
        slides=tuple(views),
        quarantined={
            "case-40-s1": "no mpp: neither in the file nor in the manifest; give --default-mpp or a column mpp",
            "case-41-s2": "3 of 130 tiles unreadable",
        },
        provenance={"Store": "s3://bucket/store", "Splits (sha256)": "9f" * 32, "milcore": "0.1.0"},
        config='{\n  "train": {\n    "pooling": "gated_attention"\n  }\n}',
    )


def slide_name(k: int) -> str:
    return f"case-{k:02d}-s1"


def without_pictures(view: SlideView) -> SlideView:
    return dataclasses.replace(view, thumbnail=None, heat=None, outline=(), patches=(), lowest=(), choice=None)


def of_many(data: ReportData, slides: int, cards: int) -> ReportData:
    """The report with so many slides, of which so many have pictures."""
    views = tuple(
        dataclasses.replace(data.slides[k % len(data.slides)], slide_id=f"m-{k:05d}", choice="drawn at random")
        if k < cards
        else dataclasses.replace(without_pictures(data.slides[k % len(data.slides)]), slide_id=f"m-{k:05d}")
        for k in range(slides)
    )
    lacking = {f"m-{k:05d}": "no annotation" for k in range(slides // 2)}
    quarantined = {f"q-{k:05d}": "no tissue" for k in range(slides)}
    return dataclasses.replace(data, slides=views, not_localised=lacking, quarantined=quarantined)


def comparison(metrics: dict[str, Estimate]) -> tuple[Comparison, ...]:
    return (
        Comparison("gated_attention, embedding level", "this run", metrics["auroc"], metrics["localisation_auroc"]),
        Comparison("embedding-mean pooling", "the same data and settings", Estimate(0.79, 0.6, 0.93), UNDEFINED),
        Comparison("slide colour", "logistic regression on mean and sd", Estimate(0.58, 0.31, 0.83), UNDEFINED),
        Comparison("patch colour", "logistic regression on mean RGB", UNDEFINED, Estimate(0.61, 0.55, 0.67)),
        Comparison("shuffled labels", "what chance looks like", Estimate(0.46, 0.2, 0.72), Estimate(0.52, 0.45, 0.6)),
    )


def flipping(bags: int) -> FlippingCurves:
    removed = np.arange(20) / 20
    curves = [0.9 - 0.8 * removed ** (1 / power) for power in (3.0, 0.2, 0.6)]
    return FlippingCurves(bags, removed.tolist(), *(curve.tolist() for curve in curves))


def history() -> pa.Table:
    return pa.Table.from_pylist(
        [
            {"fold": 0, "epoch": e, "split": s, "metric": m, "value": v}
            for e in range(24)
            for s, m, v in (
                ("train", "loss", 0.7 * np.exp(-e / 8)),
                ("val", "loss", 0.7 * np.exp(-e / 9) + 0.04 + 0.004 * e),
                ("val", "auroc", 1 - 0.45 * np.exp(-e / 4)),
            )
        ]
    )


def trials() -> pa.Table:
    tried = [
        ("max", 2.1e-4, 0.61, 0.8),
        ("mean", 7.4e-4, 0.66, 0.7),
        ("attention", 3.3e-4, 0.31, 1.0),
        ("gated_attention", 2e-4, 0.22, 1.0),
    ]
    return pa.Table.from_pylist(
        [
            {"trial": k, "pooling": pooling, "learning_rate": rate, "val_loss": loss, "val_auroc": auroc, "state": "ok"}
            for k, (pooling, rate, loss, auroc) in enumerate(tried)
        ]
    )
