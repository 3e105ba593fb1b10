"""Evaluate a finished run: predictions, metrics, attention, report and model card.

All choices are made on validation: the epoch in training, threshold and temperature here. Metrics of the test split
are computed once, and no choice depends on its labels.
"""

import posixpath
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa

from milcore.cohort.label_changes import changes_text
from milcore.config import ATTENTION_FORMATS, AnnotationConfig, AttentionFormat, LabelSource
from milcore.errors import InputError
from milcore.evaluation.attention.write import AttentionFiles
from milcore.evaluation.report import SweepTable
from milcore.evaluation.run_predictions import RunPredictions, open_run
from milcore.evaluation.target import EvaluationOptions, EvaluationTarget
from milcore.evaluation.targets import EVALUATION_TARGETS
from milcore.mil.device import compute_device
from milcore.runtime import storage
from milcore.runtime.progress import log_line
from milcore.training.run_files import publish, read_files, recorded_digests
from milcore.training.run_folder import Run
from milcore.training.sweep import Sweep

SLIDES_NAMED = 5


def evaluate(  # noqa: PLR0913 - one keyword per option of the command
    run_uri: str,
    *,
    baselines: bool = True,
    sweep_uri: str | None = None,
    compare_with: str | None = None,
    attention_formats: Sequence[AttentionFormat] = ATTENTION_FORMATS,
    with_leave_one_out: bool = False,
    annotations: AnnotationConfig | None = None,
    labels_from: LabelSource | None = None,
    allow_program: bool = False,
    use_gpu: bool = False,
) -> dict[str, Any]:
    """Evaluate a run and write its predictions, metrics, attention, report and model card.

    Args:
        run_uri: a finished run, of one model or of folds (whose mean probability, risk or value is taken).
        baselines: also train and show the rows the model has to beat.
        sweep_uri: the sweep whose best config this run took; its trials and verdict are shown.
        compare_with: a run of classes on the same slides, whose AUROC is compared on the bags that both left out.
        attention_formats: file formats of each test slide's attention.
        with_leave_one_out: also write the change of the log-odds, risk or value without each instance; seconds a slide.
        annotations: fields that are set here override those that ingestion recorded.
        labels_from: ``run`` or ``manifest``, where the store's manifest has other labels or patients than the run was
            trained on; None refuses that. Classes stay in the run's order.
        allow_program: load an encoder that the run names and that is a program (TorchScript), which runs code of its
            author.
        use_gpu: compute on a CUDA device.

    Returns:
        The content of ``metrics.json``: each metric of the test split (None where undefined, see ``reasons``), their
        ``intervals``, of classes the ``threshold``, and ``report``, here the report's URI.

    Raises:
        InputError: the run is not finished, an annotation cannot be read or is not the one that was ingested, the
            manifest's labels are no classes of the run, the sweep saw its test split, or the bags of the run to
            compare with are others.
        StoreError: the store, the labels or the splits are not those the run was trained on.
    """
    device = compute_device(use_gpu)
    folder = Run(storage.absolute(run_uri))
    sweep = None if sweep_uri is None else _sweep_table(sweep_uri, folder)
    run = open_run(folder.uri, device, labels_from, allow_program=allow_program)
    target = EVALUATION_TARGETS[run.spec.train.target]
    publish({folder.predictions_uri: storage.table_bytes(_predictions_table(run, target))})
    record = run.store.annotation_record()
    if annotations is not None:
        chosen = {name: getattr(annotations, name) for name in annotations.model_fields_set}
        record = replace(record, config=record.config.model_copy(update=chosen))
    _log_lacking_bounds(run)
    files = AttentionFiles(attention_formats, record.config.annotation_origin or "bounds")
    other = None if compare_with is None else Run(storage.absolute(compare_with))
    options = EvaluationOptions(baselines, sweep, files, with_leave_one_out, record, device, other)
    pages = target.evaluate(run, options)
    publish(
        {
            folder.model_card_uri: pages.model_card.encode(),
            folder.report_uri: pages.report.encode(),
            folder.metrics_uri: storage.json_bytes(pages.summary),
        }
    )
    for warning in pages.warnings:
        log_line(f"warning: {warning}")
    return pages.summary | {"report": folder.report_uri}


def download_overlays(run_uri: str, folder: str) -> None:
    """Download the index and the PNG pictures of a run's attention.

    Attention in other formats stays at its URI.
    """
    run = Run(run_uri)
    index = posixpath.basename(run.attention_index_uri)
    names = {*storage.names(run.attention_uri), *recorded_digests(run.attention_uri)}
    wanted = sorted(name for name in names if name == index or name.endswith(".png"))
    for name, data in read_files(run.attention_uri, wanted):
        storage.write_bytes(f"{folder}/{name}", data)


def _sweep_table(sweep_uri: str, run: Run) -> SweepTable:
    """Trials of a sweep, from which the run's test split was kept out.

    Raises:
        InputError: it was not, or the sweep is not finished.
    """
    sweep = Sweep(sweep_uri)
    sweep.require_best()
    patients = {row["patient_id"] for row in run.splits().to_pylist() if row["split"] == "test"}
    others = [row for row in sweep.splits().to_pylist() if row["split"] != "test"]
    slides = [row["slide_id"] for row in others if row["patient_id"] in patients]
    if slides:
        raise InputError(
            f"sweep: expected one that saw no patient of the run's test split, got {sweep_uri}, tuned on slides of "
            f"theirs ({changes_text(slides)}); allowed: the sweep whose splits.parquet the run was trained with; "
            "name that, or none"
        )
    return SweepTable(sweep.trials(), sweep.verdict().line)


def _predictions_table(run: RunPredictions, target: EvaluationTarget) -> pa.Table:
    entries = run.bags.entries
    outcomes, predictions = target.columns(run)
    return pa.table(
        {
            "slide_id": pa.array([";".join(entry.slides) for entry in entries], pa.string()),
            "patient_id": pa.array([entry.patient_id for entry in entries], pa.string()),
            **outcomes,
            "split": pa.array([entry.split for entry in entries], pa.string()),
            "fold": pa.array([run.fold(index) for index in range(len(entries))], pa.int32()),
            **predictions,
        }
    )


def _log_lacking_bounds(run: RunPredictions) -> None:
    """Tell of slides whose scanned bounds an earlier version did not record."""
    lacking = [slide_id for slide_id, record in run.catalogue.records.items() if record and record.lacks_bounds]
    if lacking:
        log_line(
            f"{len(lacking)} slide(s) were ingested by an earlier version, which did not record their scanned bounds "
            f"({', '.join(lacking[:SLIDES_NAMED])}): annotations and attention are placed from the slide's corner; "
            "ingest them into a new store where QuPath shows only a part of them"
        )
