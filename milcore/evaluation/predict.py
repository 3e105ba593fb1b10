"""Predict new slides with a finished run and the settings that it recorded.

Features in a store, of milcore or imported, are predicted by ``predict_store.py``.

Each bag passes through a temporary store of its own; the cohort's store is not read. Results are written bag by bag,
and a slide that has not changed is not scored again. A slide that cannot be used is quarantined with its reason; the
others are scored.
"""

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from milcore import __version__
from milcore.cohort.manifest import Slide, read_manifest
from milcore.config import (
    ATTENTION_FORMATS,
    EncodeConfig,
    EncoderRecord,
    IngestConfig,
    InstanceOrigin,
    PredictConfig,
    RunSpec,
    check_program,
    parse_config,
)
from milcore.encoders.extraction.encode import load_encoder
from milcore.errors import InputError, StoreError
from milcore.evaluation.attention.write import AttentionFiles, AttentionFolder
from milcore.evaluation.prediction_folder import (
    PredictionsSpec,
    Record,
    RecordFolder,
    check_files,
    check_records,
    claim_predictions,
    predictions_uri,
    recorded_slide,
    slides_of_files,
)
from milcore.evaluation.prediction_rows import PREDICTION_ROWS
from milcore.evaluation.score_bags import SlideSettings, score_bags
from milcore.evaluation.scorer import Scorer, load_scorer, models_digest
from milcore.mil.device import compute_device
from milcore.mil.inference import BagPrediction
from milcore.runtime import storage
from milcore.runtime.progress import log_line
from milcore.training.instances import FREE_SETTINGS
from milcore.training.run_folder import Run

RESEARCH_USE = "Research use only. Not for diagnosis."
ATTENTION = "attention"
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n")
SIGNED_NUMBER = re.compile(r"[+-][0-9]+(\.[0-9]+)?")


DEFAULTS = PredictConfig()


def predict(run_uri: str, slide_uris: Sequence[str], out_uri: str, options: PredictConfig = DEFAULTS) -> dict[str, Any]:
    """Score slide files, each a patient of its own: ``predict_slides``.

    Their ids are those of ``slides_of_files``.

    Raises:
        InputError: the run is not finished, no slide is named, or ``out_uri`` holds predictions of another run.
        StoreError: the run's slides were not ingested or encoded in one way that could be repeated.
    """
    if not slide_uris:
        raise InputError("slides: expected at least one slide, got none; allowed: paths or URIs of slide files")
    uris = [storage.absolute(uri) for uri in slide_uris]
    folder = RecordFolder(out_uri)
    return predict_slides(run_uri, slides_of_files(uris, folder.read()), folder, options)


def predict_manifest(
    run_uri: str, manifest_uri: str, out_uri: str, options: PredictConfig = DEFAULTS
) -> dict[str, Any]:
    """Score every slide of a manifest: ``predict_slides``.

    Labels, where the manifest has any, are not read.

    Raises:
        InputError: the manifest has bad rows, an id stands for another file in the folder, or as ``predict``.
        StoreError: as ``predict``.
    """
    manifest = read_manifest(manifest_uri, with_labels=False)
    slides = [replace(slide, uri=storage.absolute(slide.uri)) for slide in manifest.slides]
    return predict_slides(run_uri, slides, RecordFolder(out_uri), options)


def predict_slides(
    run_uri: str, slides: Sequence[Slide], folder: RecordFolder, options: PredictConfig
) -> dict[str, Any]:
    """Score slides and write their predictions and attention into a folder.

    Writes ``predictions.csv`` and ``predictions.json`` with a row per slide that was ever predicted into the folder,
    those of this call first: probability (one column per class if more than two), the same calibrated by the run's
    temperature, the standard deviation over the folds' models, and the predicted class; of survival the risk, that
    deviation and, of hazards, survival at the cut points; of regression the value and that deviation. Where the run's
    bags are patients, all slides of a patient in the folder are one bag and share its values.

    Args:
        run_uri: a finished run; without an evaluation there is no predicted class and no calibrated probability.
        slides: to score.
        folder: to write into; its results for unchanged slides are reused.
        options: of the prediction.

    Returns:
        The content of ``predictions.json`` for these slides, local paths absolute: ``ok`` (ids), ``quarantined`` (id to
        reason), ``slides``.
    """
    run_uri, out_uri = storage.absolute(run_uri), folder.uri
    scorer = load_scorer(run_uri, compute_device(options.use_gpu), allow_program=options.allow_program)
    spec = _predictions_spec(run_uri, scorer, options)
    claim_predictions(out_uri, spec)
    records = _records(folder, spec)
    check_files(slides, records)
    check_records(out_uri, slides, records)
    others = _other_slides(slides, records) if scorer.by_patient else []
    formats = ATTENTION_FORMATS if options.attention_formats is None else options.attention_formats
    files = AttentionFiles(formats, options.annotation_origin)
    attention = AttentionFolder(storage.join(out_uri, ATTENTION), files)
    score_bags(scorer, _slide_settings(scorer, spec), [*slides, *others], records, folder=folder, attention=attention)
    records = _records(folder, spec)
    check_files(slides, records)  # another command may have predicted another file by the same id at the same time
    rows = _rows(scorer, spec.digest, [slide.slide_id for slide in slides], records)
    stored = [_stored_row(row, out_uri) for row in rows]
    storage.write_bytes(storage.join(out_uri, "predictions.csv"), _csv(stored))
    storage.write_json(predictions_uri(out_uri), _summary(storage.relative(run_uri, out_uri), scorer, stored))
    return _summary(run_uri, scorer, rows[: len(slides)])


def _slide_settings(scorer: Scorer, spec: PredictionsSpec) -> SlideSettings:
    """Settings that a slide passes through; a folder of predictions records them."""
    name = scorer.spec.train.features
    encode = None if spec.encoder is None else EncodeConfig(encoder=spec.encoder.encoder, name=name)
    ingestion = cohort_ingestion(spec.run, scorer.spec) if spec.ingestion is None else spec.ingestion
    return SlideSettings(ingestion, encode, spec.digest)


def _stored_row(row: dict[str, Any], out_uri: str) -> dict[str, Any]:
    """The row with its file, in the reason too, told from the folder."""
    uri = storage.relative(row["uri"], out_uri)
    return row | {"uri": uri, "reason": row["reason"] and row["reason"].replace(row["uri"], uri)}


def _records(folder: RecordFolder, spec: PredictionsSpec) -> dict[str, Record]:
    """Records of the folder by id.

    Those of earlier versions have the digest of settings that they would have now.
    """
    settings = {spec.earlier_digest: spec.digest}
    return {
        slide_id: record | {"settings": settings.get(record.get("settings", ""), record.get("settings"))}
        for slide_id, record in folder.read().items()
    }


def _other_slides(slides: Sequence[Slide], records: Mapping[str, Record]) -> list[Slide]:
    """Slides in the folder of the same patients, which belong to their bags."""
    named, patients = {slide.slide_id for slide in slides}, {slide.patient_id for slide in slides}
    others = [recorded_slide(slide_id, record) for slide_id, record in records.items() if slide_id not in named]
    return [slide for slide in others if slide.patient_id in patients]


def _rows(scorer: Scorer, settings: str, first: Sequence[str], records: Mapping[str, Record]) -> list[dict[str, Any]]:
    """Rows of these slides, then of all others of the same models and settings."""
    valid = {slide_id: record for slide_id, record in records.items() if record.get("settings") == settings}
    if len(valid) < len(records):
        others = ", ".join(sorted(records.keys() - valid.keys())[:5])
        log_line(
            f"left out of predictions.csv: {len(records) - len(valid)} slides predicted by an earlier version or with "
            f"other settings ({others} …); predict them again"
        )
    return [_row(scorer, valid[slide_id]) for slide_id in dict.fromkeys([*first, *sorted(valid)])]


def _summary(run_uri: str, scorer: Scorer, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {
        "run": run_uri,
        **PREDICTION_ROWS[scorer.spec.train.target].summary(scorer),
        "folds": scorer.spec.folds,
        "bag": scorer.spec.train.bag,
        "ok": [row["slide_id"] for row in rows if row["status"] == "ok"],
        "quarantined": {row["slide_id"]: row["reason"] for row in rows if row["status"] != "ok"},
        "slides": list(rows),
        "notice": RESEARCH_USE,
    }


def cohort_origin(run_uri: str, spec: RunSpec) -> InstanceOrigin:
    """Settings that made the instances of a run.

    Raises:
        InputError: the run did not record them.
    """
    if spec.origin is None:
        raise InputError(
            f"{run_uri}: expected a run that records how its slides were ingested and encoded, got one of an earlier "
            f"version without; run `milcore train {spec.store_uri} {run_uri}` with the options it was trained with: "
            "it adds them, training nothing anew, if the store holds the same instances still; else train in another "
            "folder"
        )
    return spec.origin


def cohort_ingestion(run_uri: str, spec: RunSpec) -> IngestConfig:
    """Ingestion settings that all slides of a run share.

    Raises:
        InputError: the run did not record them.
        StoreError: the slides were ingested with different settings, or imported.
    """
    origin = cohort_origin(run_uri, spec)
    if origin.imports:
        raise StoreError(
            f"{run_uri}: expected a run on ingested slides, got imported ones ({', '.join(origin.imports)}), "
            "whose ingestion cannot be repeated on a new slide; allowed: a run on a store of milcore ingest, or "
            "features of the new slides: import them into a store and predict with --store"
        )
    if not origin.ingestion:
        raise StoreError(
            f"{run_uri}: expected a run on slides whose ingestion is known, got none in their records; ingest the "
            "cohort again by milcore ingest and train in another folder"
        )
    first, *others = (config.model_dump() for config in origin.ingestion)
    differing = sorted(
        {name for other in others for name in first if name not in FREE_SETTINGS and other[name] != first[name]}
    )
    if differing:
        raise StoreError(
            f"{run_uri}: expected a run on slides ingested with the same settings, got different "
            f"{', '.join(differing)}; allowed: one value each, for a new slide to follow; ingest the cohort again and "
            "train in another folder"
        )
    return origin.ingestion[0]


def _predictions_spec(run_uri: str, scorer: Scorer, options: PredictConfig) -> PredictionsSpec:
    """The ``config.json`` of predictions by a run."""
    ingestion = cohort_ingestion(run_uri, scorer.spec)
    if options.default_mpp is not None:
        ingestion = parse_config(IngestConfig, ingestion.model_dump() | {"default_mpp": options.default_mpp})
    encoder = _installed_encoder(run_uri, scorer.spec, scorer.device, allow_program=options.allow_program)
    return PredictionsSpec(
        milcore_version=__version__,
        run=run_uri,
        models_sha256=models_digest(Run(run_uri), scorer.spec),
        default_mpp=options.default_mpp,
        ingestion=ingestion,
        encoder=encoder,
        annotation_origin=options.annotation_origin,
    )


def _installed_encoder(
    run_uri: str, spec: RunSpec, device: torch.device, *, allow_program: bool
) -> EncoderRecord | None:
    """Encoder of the run's features; None where the models take patches.

    Raises:
        InputError: it is a program that the user did not allow.
        StoreError: the run recorded none, or the one installed here has other weights or another transform.
    """
    name = spec.train.features
    if name is None:
        return None
    recorded = None if spec.origin is None else spec.origin.encoder
    if recorded is None:
        raise StoreError(
            f"{run_uri}: expected a run on features of an encoder, got features/{name}, which no encoder made that "
            "could encode a new slide; allowed: a run on features of milcore encode"
        )
    check_program(recorded.encoder, allow_program=allow_program)
    changed = recorded.differences(load_encoder(recorded.encoder, device.type).record)
    if changed:
        raise StoreError(
            f"encoder {recorded.encoder}: expected the {', '.join(changed)} that made features/{name}, got another; "
            "install the version the cohort was encoded with"
        )
    return recorded


def _row(scorer: Scorer, record: dict[str, Any]) -> dict[str, Any]:
    """Row of a slide in the predictions, without a prediction where it is quarantined."""
    row = {name: record[name] for name in ("slide_id", "patient_id", "uri", "status")}
    prediction = BagPrediction(np.array(record["members"]), np.empty(0)) if record["members"] else None
    columns = PREDICTION_ROWS[scorer.spec.train.target].columns(scorer, prediction)
    return row | columns | {"patches": record["patches"], "reason": record["reason"]}


def _csv(rows: Sequence[dict[str, Any]]) -> bytes:
    """The rows as CSV whose cells no spreadsheet takes for a formula."""
    sink = io.StringIO()
    writer = csv.DictWriter(sink, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _cell(value) for name, value in row.items()} for row in rows)
    return sink.getvalue().encode()


def _cell(value: object) -> object:
    """Put an apostrophe before a text that opens like a formula."""
    is_formula = isinstance(value, str) and value.startswith(FORMULA_STARTS) and not SIGNED_NUMBER.fullmatch(value)
    return f"'{value}" if is_formula else value
