"""Evaluates a finished run: predictions, metrics on the untouched test split, attention, report and model card.

Everything chosen was chosen on validation: the epoch by training, the threshold here. The test split is measured once,
and nothing that follows depends on its labels.
"""

import math
import platform
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from shapely.geometry.base import BaseGeometry

from milcore import __version__, storage
from milcore.annotations import instance_labels, load_annotation
from milcore.artifacts import Finding, slide_view, write_attention
from milcore.attention import Localisation
from milcore.bags import BagEntry, Bags
from milcore.baselines import FLAT, InstanceLabels, compare, localisation_estimate, localise_test
from milcore.config import SPLIT_NAMES, RunSpec
from milcore.errors import StoreError
from milcore.explain import Explained, attention_by_slide, explain
from milcore.metrics import (
    Comparison,
    Estimate,
    Threshold,
    choose_threshold,
    confusion,
    estimates,
    reliability,
    roc_curve,
)
from milcore.progress import say, track
from milcore.report import ReportData, SlideView, SplitCount, model_card, render
from milcore.run import HISTORY, instance_digest, load_bags, load_model, read_splits
from milcore.splits import splits_digest
from milcore.store import PatchStore
from milcore.sweep import TRIALS

METRICS = "metrics.json"
PREDICTIONS = "predictions.parquet"
ATTENTION = "attention"
REPORT = "report.html"
MODEL_CARD = "MODEL_CARD.md"
RELIABILITY_BINS = 5


class _Run(NamedTuple):
    """A finished run, its bags, and what its model says of every one of them."""

    uri: str
    spec: RunSpec
    store: PatchStore
    bags: Bags
    said: dict[int, Explained]

    def part(self, split: str) -> tuple[list[BagEntry], np.ndarray, np.ndarray]:
        """Entries, labels and probabilities of a split."""
        indices = self.bags.split(split)
        entries = [self.bags.entries[index] for index in indices]
        labels = np.array([entry.label for entry in entries], dtype=np.int64)
        return entries, labels, np.array([self.said[index].probability for index in indices], dtype=np.float64)


class _Measured(NamedTuple):
    """The test split in numbers."""

    threshold: Threshold
    estimates: dict[str, Estimate]
    localisation: Localisation


def evaluate(
    run_uri: str, *, baselines: bool = True, sweep_uri: str | None = None, use_gpu: bool = False
) -> dict[str, Any]:
    """Evaluate a run and write its predictions, metrics, attention, report and model card.

    Args:
        run_uri: a finished run.
        baselines: also train and show the rows the model has to beat.
        sweep_uri: the sweep whose best config this run took; its trials are shown.
        use_gpu: compute on a CUDA device.

    Returns:
        The content of ``metrics.json``: each metric of the test split (None where undefined, see ``reasons``), their
        ``intervals``, the ``threshold``, and ``report``, the report's URI.

    Raises:
        InputError: the run is not finished, or an annotation cannot be read.
        StoreError: the store or the splits are not those the run was trained on.
    """
    device = torch.device("cuda" if use_gpu else "cpu")
    run = _open_run(storage.absolute(run_uri), device)
    storage.write_table(storage.join(run.uri, PREDICTIONS), _predictions(run))
    regions = _regions(run)
    labels = _instance_labels(run, regions)
    measured = _measure(run, labels)
    rows = [_own_row(run.spec, measured)]
    if baselines:
        say("comparing with simple models")
        rows += compare(run.spec.train, run.bags, run.store, labels, device)
    data = _report_data(run, measured, rows, _slide_views(run, regions, measured), _trials(sweep_uri))
    storage.write_bytes(storage.join(run.uri, MODEL_CARD), model_card(data).encode())
    storage.write_bytes(storage.join(run.uri, REPORT), render(data).encode())
    summary = _summary(run, measured, rows)
    storage.write_json(storage.join(run.uri, METRICS), summary)
    return summary


def _open_run(run_uri: str, device: torch.device) -> _Run:
    """Read a run, make sure that it stands on what it was trained on, and run its model over all bags."""
    spec, model = load_model(run_uri)
    splits = read_splits(run_uri)
    store = PatchStore(spec.store_uri)
    if splits_digest(splits) != spec.splits_digest:
        raise StoreError(f"the splits of {run_uri} are not those it was trained with; train again in another folder")
    if instance_digest(store, spec.train, splits["slide_id"].to_pylist()) != spec.instance_digest:
        raise StoreError(
            f"the instances in {spec.store_uri} have changed since {run_uri} was trained; train again in another folder"
        )
    bags = load_bags(spec.store_uri, spec.train, splits)
    return _Run(run_uri, spec, store, bags, explain(model, bags, range(len(bags)), device))


def _predictions(run: _Run) -> pa.Table:
    entries = run.bags.entries
    return pa.table(
        {
            "slide_id": pa.array([";".join(entry.slides) for entry in entries], pa.string()),
            "patient_id": pa.array([entry.patient_id for entry in entries], pa.string()),
            "label": pa.array([entry.label for entry in entries], pa.int64()),
            "split": pa.array([entry.split for entry in entries], pa.string()),
            "fold": pa.array([0] * len(entries), pa.int32()),
            "probability": pa.array([run.said[index].probability for index in range(len(entries))], pa.float64()),
        }
    )


def _regions(run: _Run) -> dict[str, BaseGeometry]:
    """Annotated regions of the positive slides that were trained or tested on."""
    manifest = run.store.manifest()
    slides = [manifest.slide(slide_id) for slide_id in _positive_slides(run)]
    return {s.slide_id: load_annotation(s.annotation, s.slide_id) for s in slides if s.annotation is not None}


def _positive_slides(run: _Run) -> list[str]:
    entries = [entry for entry in run.bags.entries if entry.label == 1 and entry.split in {"train", "test"}]
    return [slide_id for entry in entries for slide_id in entry.slides]


def _instance_labels(run: _Run, regions: dict[str, BaseGeometry]) -> InstanceLabels:
    """By annotation where there is one and patches have places, else those that were imported, where they were."""
    labels: InstanceLabels = {}
    for slide in map(run.store.slide, _positive_slides(run)):
        if slide.slide_id in regions and slide.has_coords:
            labels[slide.slide_id] = instance_labels(slide.coords, slide.size_level0, regions[slide.slide_id])
        elif slide.instance_labels is not None:
            labels[slide.slide_id] = slide.instance_labels.astype(np.int64)
    return labels


def _measure(run: _Run, labels: InstanceLabels) -> _Measured:
    """Choose the threshold on validation, then read the test split."""
    _, val_labels, val_probability = run.part("val")
    threshold = choose_threshold(val_labels, val_probability)
    entries, truth, probability = run.part("test")
    seed = run.spec.train.seed
    values = estimates(truth, probability, [entry.patient_id for entry in entries], threshold.value, seed)
    found = localise_test(attention_by_slide(run.bags, run.said), entries, labels)
    flat = run.spec.train.pooling == "mean"
    values["localisation_auroc"] = FLAT if flat else localisation_estimate(found, entries, seed)
    return _Measured(threshold, values, found)


def _own_row(spec: RunSpec, measured: _Measured) -> Comparison:
    source = spec.train.features or f"{spec.train.encoder}, trained end to end"
    name = f"{spec.train.pooling.replace('_', ' ')} pooling, {spec.train.level} level"
    values = measured.estimates
    return Comparison(name, f"this run, on {source}", values["auroc"], values["localisation_auroc"])


def _slide_views(run: _Run, regions: dict[str, BaseGeometry], measured: _Measured) -> tuple[SlideView, ...]:
    """Write the attention of every test slide and collect what the report shows of it."""
    folder = storage.join(run.uri, ATTENTION)
    indices = run.bags.split("test")
    views = []
    for index in track(indices, "attention", len(indices)):
        entry, explained = run.bags.entries[index], run.said[index]
        for slide_id, attention in entry.by_slide(explained.attention).items():
            slide = run.store.slide(slide_id)
            table = write_attention(folder, slide, attention)
            area = measured.localisation.bags.get(slide_id)
            here = Explained(explained.probability, attention)
            finding = Finding(entry.patient_id, entry.label, here, regions.get(slide_id), area)
            views.append(slide_view(slide, finding, table))
    return tuple(views)


def _trials(sweep_uri: str | None) -> pa.Table | None:
    return None if sweep_uri is None else storage.read_table(storage.join(sweep_uri, TRIALS))


def _report_data(
    run: _Run,
    measured: _Measured,
    rows: Sequence[Comparison],
    views: tuple[SlideView, ...],
    trials: pa.Table | None,
) -> ReportData:
    _, truth, probability = run.part("test")
    return ReportData(
        title=run.uri.rsplit("/", 1)[-1],
        classes=run.spec.classes,
        counts=tuple(_count(run, split) for split in SPLIT_NAMES if run.bags.split(split)),
        metrics=measured.estimates,
        threshold=measured.threshold,
        localised=len(measured.localisation.bags),
        not_localised=measured.localisation.left_out,
        comparison=tuple(rows),
        roc=list(zip(*roc_curve(truth, probability)[:2], strict=True)),
        confusion=confusion(truth, probability, measured.threshold.value),
        reliability=reliability(truth, probability, RELIABILITY_BINS),
        history=storage.read_table(storage.join(run.uri, HISTORY)),
        trials=trials,
        slides=views,
        quarantined=run.store.quarantined(),
        provenance=_provenance(run),
        config=run.spec.model_dump_json(indent=2),
    )


def _count(run: _Run, split: str) -> SplitCount:
    entries, labels, _ = run.part(split)
    positive = int(labels.sum())
    return SplitCount(split, len({entry.patient_id for entry in entries}), len(entries) - positive, positive)


def _provenance(run: _Run) -> dict[str, str]:
    first = run.store.slide(run.bags.entries[0].slides[0])
    features, encoder = run.spec.train.features, run.spec.train.encoder
    patch_mpp = first.attrs.get("mpp", {}).get("patch")
    patches = f"{first.patch_size or 'unknown'} px" + ("" if patch_mpp is None else f" at {patch_mpp:g} µm/px")
    made = {} if features is None else first.feature_attrs(features)
    return {
        "Run": run.uri,
        "Store": run.spec.store_uri,
        "Patches": patches if first.imported is None else f"{patches}, imported as {first.imported['format']}",
        "Instances": f"{sum(run.bags.lengths)} in {len(run.bags)} slides",
        "Instances, sha256": run.spec.instance_digest,
        "Splits, sha256": run.spec.splits_digest,
        "Encoder": "not ours: features were imported" if "imported" in made else str(made.get("encoder", encoder)),
        **({"Encoder weights, sha256": str(made["weights_digest"])} if "weights_digest" in made else {}),
        "Trained with": f"milcore {run.spec.milcore_version}",
        "Evaluated with": f"milcore {__version__}, torch {torch.__version__}, Python {platform.python_version()}",
    }


def _summary(run: _Run, measured: _Measured, rows: Sequence[Comparison]) -> dict[str, Any]:
    values = measured.estimates
    _, truth, probability = run.part("test")
    return {
        **{name: _or_none(its.value) for name, its in values.items()},
        "intervals": {name: [its.low, its.high] for name, its in values.items() if not math.isnan(its.low)},
        "reasons": {name: its.reason for name, its in values.items() if its.reason is not None},
        "threshold": measured.threshold.value,
        "threshold_origin": measured.threshold.origin,
        "confusion": confusion(truth, probability, measured.threshold.value),
        "roc": roc_curve(truth, probability)._asdict(),
        "classes": list(run.spec.classes),
        "slides": {split: sum(len(entry.slides) for entry in run.part(split)[0]) for split in SPLIT_NAMES},
        "localised": len(measured.localisation.bags),
        "not_localised": measured.localisation.left_out,
        "comparison": [
            {
                "name": row.name,
                "auroc": _or_none(row.auroc.value),
                "localisation_auroc": _or_none(row.localisation_auroc.value),
            }
            for row in rows
        ],
        "quarantined": run.store.quarantined(),
        "report": storage.join(run.uri, REPORT),
    }


def _or_none(value: float) -> float | None:
    """JSON has no NaN."""
    return None if math.isnan(value) else value
