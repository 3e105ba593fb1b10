"""Evaluates a finished run: predictions, metrics on the untouched test split, attention, report and model card.

Everything chosen was chosen on validation: the epoch by training, threshold and temperature here. The test split is
measured once, and nothing that follows depends on its labels.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from shapely.geometry.base import BaseGeometry

from milcore.cohort.annotations import instance_labels, load_annotation
from milcore.config import ATTENTION_FORMATS, AttentionFormat, RunSpec
from milcore.evaluation.attention.checks import (
    AttentionChecks,
    InstanceLabels,
    check_attention,
)
from milcore.evaluation.attention.write import Finding, slide_view, write_attention
from milcore.evaluation.baselines import compare
from milcore.evaluation.decision import DecisionRule, choose_rule, predicted_classes
from milcore.evaluation.gather_report import report_data
from milcore.evaluation.metrics_json import metrics_json, or_none
from milcore.evaluation.report import Picture, SlideView, Sweep, model_card, render
from milcore.evaluation.results import Evaluation
from milcore.evaluation.run_predictions import RunPredictions, open_run
from milcore.evaluation.scores import SplitMetrics, measure
from milcore.metrics.classification import Comparison
from milcore.mil.inference import instance_columns
from milcore.runtime import storage
from milcore.runtime.progress import say, track
from milcore.store.slide_group import SlideGroup
from milcore.training.sweep import TRIALS, read_verdict

METRICS = "metrics.json"
PREDICTIONS = "predictions.parquet"
ATTENTION = "attention"
INDEX = "index.json"
REPORT = "report.html"
MODEL_CARD = "MODEL_CARD.md"
READING_THREADS = 16


class Forms(NamedTuple):
    """How attention is written: the files, and whether they tell what the model says without each instance."""

    formats: Sequence[AttentionFormat]
    with_leave_one_out: bool


def evaluate(  # noqa: PLR0913 - one keyword per option of the command
    run_uri: str,
    *,
    baselines: bool = True,
    sweep_uri: str | None = None,
    attention_formats: Sequence[AttentionFormat] = ATTENTION_FORMATS,
    with_leave_one_out: bool = False,
    use_gpu: bool = False,
) -> dict[str, Any]:
    """Evaluate a run and write its predictions, metrics, attention, report and model card.

    Args:
        run_uri: a finished run, of one model or of folds (whose mean probability is taken).
        baselines: also train and show the rows the model has to beat.
        sweep_uri: the sweep whose best config this run took; its trials and verdict are shown.
        attention_formats: the forms of each test slide's attention.
        with_leave_one_out: also the change of the log-odds without each instance; seconds a slide.
        use_gpu: compute on a CUDA device.

    Returns:
        The content of ``metrics.json``: each metric of the test split (None where undefined, see ``reasons``), their
        ``intervals``, the ``threshold``, and ``report``, the report's URI.

    Raises:
        InputError: the run is not finished, or an annotation cannot be read.
        StoreError: the store or the splits are not those the run was trained on.
    """
    device = torch.device("cuda" if use_gpu else "cpu")
    sweep = None if sweep_uri is None else _sweep(sweep_uri)
    run = open_run(storage.absolute(run_uri), device)
    rule = choose_rule(run.split("val"))
    storage.write_table(storage.join(run.uri, PREDICTIONS), _predictions(run))
    groups = _groups(run)
    regions = _regions(run, groups)
    labels = _instance_labels(groups, regions)
    measured = measure(run.split("test"), rule, run.spec.train.seed)
    checked = check_attention(run, rule, labels)
    measured = measured._replace(overall=measured.overall | checked.estimates)
    rows = [_own_row(run.spec, measured)]
    if baselines:
        say("comparing with simple models")
        rows += compare(run.spec.train, run.as_split, run.store, labels, device)
    views = tuple(_slide_views(run, rule, regions, checked, Forms(attention_formats, with_leave_one_out)))
    found = Evaluation(run, rule, measured, checked, rows)
    summary = metrics_json(found, storage.join(run.uri, REPORT))
    data = report_data(found, views, sweep)
    storage.write_bytes(storage.join(run.uri, MODEL_CARD), model_card(data).encode())
    storage.write_bytes(storage.join(run.uri, REPORT), render(data).encode())
    storage.write_json(storage.join(run.uri, METRICS), summary)
    for warning in checked.warnings:
        say(f"warning: {warning}")
    return summary


def download_overlays(run_uri: str, folder: str) -> None:
    """Copy the index of a run's attention and the pictures to a local folder; the other forms stay at their URI."""
    uri = storage.join(run_uri, ATTENTION)
    for name in storage.names(uri):
        if name == INDEX or name.endswith(".png"):
            storage.download(storage.join(uri, name), f"{folder}/{name}")


def _sweep(sweep_uri: str) -> Sweep:
    return Sweep(storage.read_table(storage.join(sweep_uri, TRIALS)), read_verdict(sweep_uri).line)


def _predictions(run: RunPredictions) -> pa.Table:
    entries = run.bags.entries
    said = np.array([run.said[index].probability for index in range(len(entries))])
    columns = {
        "slide_id": pa.array([";".join(entry.slides) for entry in entries], pa.string()),
        "patient_id": pa.array([entry.patient_id for entry in entries], pa.string()),
        "label": pa.array([entry.label for entry in entries], pa.int64()),
        "split": pa.array([entry.split for entry in entries], pa.string()),
        "fold": pa.array([run.fold(index) for index in range(len(entries))], pa.int32()),
    }
    if len(run.spec.classes) == 2:
        return pa.table(columns | {"probability": pa.array(said[:, 1], pa.float64())})
    of_class = {f"probability_{name}": pa.array(said[:, k], pa.float64()) for k, name in enumerate(run.spec.classes)}
    return pa.table(columns | of_class)


def _groups(run: RunPredictions) -> dict[str, SlideGroup]:
    """The slides that may hold positive instances, of training and test; their attributes are read at the same time."""
    classes = len(run.spec.classes)
    entries = [entry for entry in run.bags.entries if entry.label == 1 or classes > 2]
    names = [slide_id for entry in entries for slide_id in entry.slides]
    with ThreadPoolExecutor(READING_THREADS) as pool:
        return dict(zip(names, pool.map(run.store.slide, names), strict=True))


def _regions(run: RunPredictions, groups: dict[str, SlideGroup]) -> dict[str, BaseGeometry]:
    """Annotated regions of these slides."""
    manifest = run.store.manifest()
    annotated = [slide for slide in map(manifest.slide, groups) if slide.annotation is not None]
    with ThreadPoolExecutor(READING_THREADS) as pool:
        found = pool.map(lambda slide: load_annotation(str(slide.annotation), slide.slide_id), annotated)
        return dict(zip([slide.slide_id for slide in annotated], found, strict=True))


def _instance_labels(groups: dict[str, SlideGroup], regions: dict[str, BaseGeometry]) -> InstanceLabels:
    """By annotation where there is one and patches have places, else those that were imported, where they were."""

    def read(slide: SlideGroup) -> np.ndarray | None:
        if slide.slide_id in regions and slide.has_coords:
            return instance_labels(slide.coords, slide.size_level0, regions[slide.slide_id])
        return None if slide.instance_labels is None else slide.instance_labels.astype(np.int64)

    with ThreadPoolExecutor(READING_THREADS) as pool:
        found = zip(groups, pool.map(read, groups.values()), strict=True)
        return {slide_id: labels for slide_id, labels in found if labels is not None}


def _own_row(spec: RunSpec, measured: SplitMetrics) -> Comparison:
    source = spec.train.features or f"{spec.train.encoder}, trained end to end"
    name = f"{spec.train.pooling.replace('_', ' ')} pooling, {spec.train.level} level"
    values = measured.overall
    models = f"mean of {spec.folds} folds, " if spec.folds else ""
    return Comparison(name, f"this run, {models}on {source}", values["auroc"], values["localisation_auroc"])


def _slide_views(
    run: RunPredictions,
    rule: DecisionRule,
    regions: dict[str, BaseGeometry],
    checked: AttentionChecks,
    forms: Forms,
) -> Iterator[SlideView]:
    """Write the attention of every test slide, and an index of it, and collect what the report shows."""
    folder = storage.join(run.uri, ATTENTION)
    called = predicted_classes(run, rule)
    picture = Picture.for_slides(sum(len(run.bags.entries[index].slides) for index in called))
    index_rows = []
    for index in track(list(called), "attention", len(called)):
        entry, said = run.bags.entries[index], run.said[index]
        behind = instance_columns(
            run.models, run.bags[index], called[index], with_leave_one_out=forms.with_leave_one_out
        )
        parts = {name: entry.by_slide(values) for name, values in behind.items()}
        for slide_id, weight in entry.by_slide(said.attention).items():
            slide = run.store.slide(slide_id)
            more = {name: values[slide_id] for name, values in parts.items()}
            table = write_attention(folder, slide, weight, forms.formats, more)
            finding = Finding(
                patient_id=entry.patient_id,
                label=entry.label,
                called=called[index],
                probabilities=tuple(said.probability.tolist()),
                spread=float(said.std[called[index]]) if run.spec.folds else None,
                attention=weight,
                region=regions.get(slide_id) if entry.label or len(run.spec.classes) > 2 else None,
                localisation=checked.localisation.bags.get(slide_id),
            )
            view = slide_view(slide, finding, table, picture)
            row = {"slide_id": slide_id, "bag": entry.bag_id, "called": run.spec.classes[called[index]]}
            index_rows.append(row | {"probabilities": finding.probabilities, "entropy": or_none(view.entropy)})
            yield view
    storage.write_json(storage.join(folder, INDEX), index_rows)
