"""Contents of the report of an evaluated run."""

import platform
import posixpath
from collections.abc import Mapping

import numpy as np
import torch

from milcore import __version__
from milcore.cohort.label_changes import changes_text
from milcore.config import SPLIT_NAMES, InstanceOrigin
from milcore.evaluation.attention.patch_flipping import REMOVED, Flipping, mean_flipping
from milcore.evaluation.report import Curve, FlippingCurves, ReportData, SlideView, SplitCount, SweepTable
from milcore.evaluation.results import RunResults
from milcore.evaluation.run_predictions import RunPredictions, SplitPredictions
from milcore.metrics.calibration import reliability
from milcore.metrics.classification import confusion
from milcore.metrics.curves import curve_bands, precision_recall, roc_curve
from milcore.runtime import storage

RELIABILITY_BINS = 5


def report_data(evaluation: RunResults, views: tuple[SlideView, ...], sweep: SweepTable | None) -> ReportData:
    """Contents of the report of an evaluated run."""
    run, rule, metrics, checks, comparison, sites = evaluation
    test = run.split("test")
    roc, recall = _curves(test, run.spec.classes, run.spec.train.seed)
    return ReportData(
        title=run.uri.rsplit("/", 1)[-1],
        classes=run.spec.classes,
        bag=run.spec.train.bag,
        counts=tuple(_count(run, split) for split in SPLIT_NAMES if run.bags.split(split)),
        metrics=metrics.overall,
        score=metrics.score,
        auroc_delong=metrics.auroc_delong,
        of_class=metrics.of_class,
        of_patients=metrics.of_patients,
        threshold=rule.threshold,
        temperature=rule.temperature.value,
        temperature_origin=rule.temperature.origin,
        calibrated=metrics.calibrated,
        localised=len(checks.localisation.bags),
        not_localised=checks.localisation.left_out,
        warnings=evaluation.warnings,
        sites=sites,
        comparison=tuple(comparison),
        roc=roc,
        precision_recall=recall,
        confusion=confusion(test.labels, rule.predict(test.probability), len(run.spec.classes)),
        reliability=_reliability(test),
        flipping=_mean_curves(checks.flipping),
        history=run.history(),
        folds=run.spec.folds,
        sweep=sweep,
        slides=views,
        quarantined=run.catalogue.quarantined(),
        provenance=provenance(run),
        config=config_text(run),
    )


def _curves(test: SplitPredictions, classes: tuple[str, ...], seed: int) -> tuple[tuple[Curve, ...], tuple[Curve, ...]]:
    """ROC and precision-recall curves: of the positive class of two, or of every class.

    With two classes a curve has the band of its resamples.
    """
    if len(classes) == 2:
        positive = test.probability[:, 1]
        roc_band, recall_band = curve_bands(test.labels, positive, test.patients, seed)
        roc = list(zip(*roc_curve(test.labels, positive)[:2], strict=True))
        recall = precision_recall(test.labels, positive)
        return (Curve(classes[1], roc, roc_band),), (Curve(classes[1], recall, recall_band),)
    of_class = [(name, (test.labels == k).astype(np.int64), test.probability[:, k]) for k, name in enumerate(classes)]
    rocs = [Curve(name, list(zip(*roc_curve(y, p)[:2], strict=True)), None) for name, y, p in of_class]
    recalls = [Curve(name, precision_recall(y, p), None) for name, y, p in of_class]
    return tuple(rocs), tuple(recalls)


def _reliability(test: SplitPredictions) -> list[tuple[float, float, int]]:
    """Reliability of the positive class of two, of the most probable one of more."""
    if test.probability.shape[1] == 2:
        return reliability(test.labels, test.probability[:, 1], RELIABILITY_BINS)
    right = (test.probability.argmax(axis=1) == test.labels).astype(np.int64)
    return reliability(right, test.probability.max(axis=1), RELIABILITY_BINS)


def _mean_curves(flipping: Mapping[str, Flipping]) -> FlippingCurves | None:
    if not flipping:
        return None
    mean = mean_flipping(list(flipping.values()))
    return FlippingCurves(len(flipping), REMOVED.tolist(), *(curve.tolist() for curve in mean))


def _count(run: RunPredictions, name: str) -> SplitCount:
    split = run.split(name)
    of_class = np.bincount(split.labels, minlength=len(run.spec.classes))
    return SplitCount(name, len(set(split.patients)), tuple(of_class.tolist()))


def _store_path(run: RunPredictions) -> str:
    """The store, from the run folder where both are local.

    A report is handed on, and a full path names people and projects.
    """
    return storage.relative(run.spec.store_uri, run.uri)


def config_text(run: RunPredictions) -> str:
    """Settings of a run as JSON, without the full path of its store."""
    return run.spec.model_copy(update={"store_uri": _store_path(run)}).model_dump_json(indent=2)


def provenance(run: RunPredictions) -> dict[str, str]:
    """Origin of a run's instances, splits and models, by name."""
    first = run.catalogue.slide(run.bags.entries[0].slides[0])
    features, encoder = run.spec.train.features, run.spec.train.encoder
    patch_mpp, origin = first.record.patch_mpp, first.record.import_origin
    patches = f"{first.patch_size or 'unknown'} px" + ("" if patch_mpp is None else f" at {patch_mpp:g} µm/px")
    attrs = {} if features is None else first.feature_attrs(features)
    ingestion = _ingestion(run.spec.origin)
    return {
        "Run": posixpath.basename(run.uri) if storage.is_local(run.uri) else run.uri,
        "Store": _store_path(run),
        "Patches": patches if origin is None else f"{patches}, imported as {origin.format}",
        "Instances": f"{sum(run.bags.lengths)} in {sum(len(entry.slides) for entry in run.bags.entries)} slides",
        "Instances, sha256": run.spec.instance_digest,
        "Splits, sha256": run.spec.splits_digest,
        **({"Labels": _label_source(run)} if run.labels_from else {}),
        "Encoder": "not ours: features were imported" if "imported" in attrs else str(attrs.get("encoder", encoder)),
        **({"Ingestion": ingestion} if ingestion else {}),
        **({"Encoder weights, sha256": str(attrs["weights_digest"])} if "weights_digest" in attrs else {}),
        **({"Models": f"{run.spec.folds}, one per fold; predictions are their mean"} if run.spec.folds else {}),
        "Trained with": f"milcore {run.spec.milcore_version}",
        "Evaluated with": f"milcore {__version__}, torch {torch.__version__}, Python {platform.python_version()}",
    }


def _label_source(run: RunPredictions) -> str:
    """Source of labels and patients, and the differences between run and manifest."""
    source = "as the run was trained on them" if run.labels_from == "run" else "of the manifest as it is now"
    return f"{source} (--labels-from {run.labels_from}); {changes_text(run.label_changes) or 'run and manifest agree'}"


def _ingestion(origin: InstanceOrigin | None) -> str:
    """Settings of ingestion that the run recorded; empty where it recorded none."""
    recorded = () if origin is None else origin.ingestion
    settings = (", ".join(f"{name} {value}" for name, value in config.model_dump().items()) for config in recorded)
    return "; or ".join(settings)
