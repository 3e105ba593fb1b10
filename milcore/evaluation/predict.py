"""Predict new slides with a finished run and the settings that it recorded.

Each bag passes through a temporary store of its own; the cohort's store is not read. Results are written bag by bag,
and a slide that has not changed is not scored again. A slide that cannot be used is quarantined with its reason; the
others are scored.
"""

import csv
import hashlib
import io
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch

from milcore import __version__
from milcore.cohort.manifest import Slide, read_manifest
from milcore.config import (
    EncodeConfig,
    EncoderRecord,
    IngestConfig,
    PredictConfig,
    RunSpec,
    check_program,
    parse_config,
)
from milcore.encoders.extraction.encode import encode_slide, load_encoder
from milcore.errors import InputError, SlideError, StoreError
from milcore.evaluation.attention.write import AttentionFiles, remove_attention, write_attention
from milcore.evaluation.decision import DecisionRule
from milcore.evaluation.prediction_folder import (
    PredictionsSpec,
    Record,
    check_files,
    check_records,
    predictions_uri,
    read_records,
    recorded_slide,
    slides_of_files,
    write_record,
)
from milcore.ingestion.slide import ingest_slide
from milcore.metrics.calibration import Temperature, calibrate
from milcore.metrics.classification import Threshold
from milcore.mil.bags.bags import BagEntry, Bags, cache_bytes
from milcore.mil.bags.load import instance_rows
from milcore.mil.bags.rows import ChainedRows
from milcore.mil.device import compute_device
from milcore.mil.inference import BagPrediction, instance_columns, predict_bags
from milcore.mil.model import MILModel
from milcore.runtime import storage
from milcore.runtime.allow_list import uri_problem
from milcore.runtime.progress import log_line, track
from milcore.slides.source import source_stat
from milcore.store.slide_group import SlideGroup
from milcore.store.store import PatchStore
from milcore.training.instances import FREE_SETTINGS
from milcore.training.run_files import read_file
from milcore.training.run_folder import Run, claim_folder, read_metrics

RESEARCH_USE = "Research use only. Not for diagnosis."
ATTENTION = "attention"
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n")
SIGNED_NUMBER = re.compile(r"[+-][0-9]+(\.[0-9]+)?")


class _Scorer(NamedTuple):
    """Models and settings of a run that score new slides.

    ``rule`` is None where the run has not been evaluated; ``encode`` is None where the models take patches.
    ``settings`` is the digest of all that the folder's predictions depend on; ``files`` are those of attention.
    """

    spec: RunSpec
    models: tuple[MILModel, ...]
    ingest: IngestConfig
    encode: EncodeConfig | None
    rule: DecisionRule | None
    settings: str
    device: torch.device
    files: AttentionFiles


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
    return predict_slides(run_uri, slides_of_files(uris, read_records(out_uri)), out_uri, options)


def predict_manifest(
    run_uri: str, manifest_uri: str, out_uri: str, options: PredictConfig = DEFAULTS
) -> dict[str, Any]:
    """Score every slide of a manifest: ``predict_slides``.

    Labels, where the manifest has any, are not read.

    Raises:
        InputError: the manifest has bad rows, an id stands for another file in the folder, or as ``predict``.
        StoreError: as ``predict``.
    """
    manifest = read_manifest(manifest_uri, required=("slide_id", "uri"))
    slides = [replace(slide, uri=storage.absolute(slide.uri)) for slide in manifest.slides]
    return predict_slides(run_uri, slides, out_uri, options)


def predict_slides(run_uri: str, slides: Sequence[Slide], out_uri: str, options: PredictConfig) -> dict[str, Any]:
    """Score slides and write their predictions and attention below ``out_uri``.

    Writes ``predictions.csv`` and ``predictions.json`` with a row per slide that was ever predicted into the folder,
    those of this call first: probability (one column per class if more than two), the same calibrated by the run's
    temperature, the standard deviation over the folds' models, and the predicted class. Where the run's bags are
    patients, all slides of a patient in the folder are one bag and share its values.

    Args:
        run_uri: a finished run; without an evaluation there is no predicted class and no calibrated probability.
        slides: to score.
        out_uri: folder to write into; its results for unchanged slides are reused.
        options: of the prediction.

    Returns:
        The content of ``predictions.json`` for these slides, local paths absolute: ``ok`` (ids), ``quarantined`` (id to
        reason), ``slides``.
    """
    run_uri = storage.absolute(run_uri)
    scorer, spec = _load_scorer(run_uri, options)
    claim_folder(out_uri, spec)
    records = _records(out_uri, spec)
    check_files(slides, records)
    check_records(out_uri, slides, records)
    bags = _group_by_bag(
        [*slides, *_other_slides(slides, records)] if _by_patient(scorer.spec) else slides, scorer.spec
    )
    for bag in track(bags, "predict", len(bags)):
        _score_bag(scorer, bag, records, out_uri)
    records = _records(out_uri, spec)
    check_files(slides, records)  # another command may have predicted another file by the same id at the same time
    rows = _rows(scorer, [slide.slide_id for slide in slides], records)
    stored = [_stored_row(row, out_uri) for row in rows]
    storage.write_bytes(storage.join(out_uri, "predictions.csv"), _csv(stored))
    storage.write_json(predictions_uri(out_uri), _summary(storage.relative(run_uri, out_uri), scorer, stored))
    return _summary(run_uri, scorer, rows[: len(slides)])


def _stored_row(row: dict[str, Any], out_uri: str) -> dict[str, Any]:
    """The row with its file, in the reason too, told from the folder."""
    uri = storage.relative(row["uri"], out_uri)
    return row | {"uri": uri, "reason": row["reason"] and row["reason"].replace(row["uri"], uri)}


def _records(out_uri: str, spec: PredictionsSpec) -> dict[str, Record]:
    """Records of the folder by id.

    Those of earlier versions have the digest of settings that they would have now.
    """
    settings = {spec.earlier_digest: spec.digest}
    return {
        slide_id: record | {"settings": settings.get(record.get("settings", ""), record.get("settings"))}
        for slide_id, record in read_records(out_uri).items()
    }


def _by_patient(spec: RunSpec) -> bool:
    return spec.train.bag == "patient"


def _other_slides(slides: Sequence[Slide], records: Mapping[str, Record]) -> list[Slide]:
    """Slides in the folder of the same patients, which belong to their bags."""
    named, patients = {slide.slide_id for slide in slides}, {slide.patient_id for slide in slides}
    others = [recorded_slide(slide_id, record) for slide_id, record in records.items() if slide_id not in named]
    return [slide for slide in others if slide.patient_id in patients]


def _rows(scorer: _Scorer, first: Sequence[str], records: Mapping[str, Record]) -> list[dict[str, Any]]:
    """Rows of these slides, then of all others of the same models and settings."""
    valid = {slide_id: record for slide_id, record in records.items() if record.get("settings") == scorer.settings}
    if len(valid) < len(records):
        others = ", ".join(sorted(records.keys() - valid.keys())[:5])
        log_line(
            f"left out of predictions.csv: {len(records) - len(valid)} slides predicted by an earlier version or with "
            f"other settings ({others} …); predict them again"
        )
    return [_row(scorer, valid[slide_id]) for slide_id in dict.fromkeys([*first, *sorted(valid)])]


def _summary(run_uri: str, scorer: _Scorer, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {
        "run": run_uri,
        "classes": list(scorer.spec.classes),
        "threshold": scorer.rule.threshold.value if scorer.rule and scorer.rule.threshold else None,
        "temperature": scorer.rule.temperature.value if scorer.rule else None,
        "folds": scorer.spec.folds,
        "bag": scorer.spec.train.bag,
        "ok": [row["slide_id"] for row in rows if row["status"] == "ok"],
        "quarantined": {row["slide_id"]: row["reason"] for row in rows if row["status"] != "ok"},
        "slides": list(rows),
        "notice": RESEARCH_USE,
    }


def cohort_ingestion(run_uri: str, spec: RunSpec) -> IngestConfig:
    """Ingestion settings that all slides of a run share.

    Raises:
        InputError: the run did not record them.
        StoreError: the slides were ingested with different settings, or imported.
    """
    if spec.origin is None:
        raise InputError(
            f"{run_uri}: expected a run that records how its slides were ingested and encoded, got one of an earlier "
            f"version without; run `milcore train {spec.store_uri} {run_uri}` with the options it was trained with: "
            "it adds them, training nothing anew, if the store holds the same instances still; else train in another "
            "folder"
        )
    if spec.origin.imports:
        raise StoreError(
            f"{run_uri}: expected a run on ingested slides, got imported ones ({', '.join(spec.origin.imports)}), "
            "whose ingestion cannot be repeated on a new slide; allowed: a run on a store of milcore ingest; import "
            "new slides beside the others and evaluate"
        )
    if not spec.origin.ingestion:
        raise StoreError(
            f"{run_uri}: expected a run on slides whose ingestion is known, got none in their records; ingest the "
            "cohort again by milcore ingest and train in another folder"
        )
    first, *others = (config.model_dump() for config in spec.origin.ingestion)
    differing = sorted(
        {name for other in others for name in first if name not in FREE_SETTINGS and other[name] != first[name]}
    )
    if differing:
        raise StoreError(
            f"{run_uri}: expected a run on slides ingested with the same settings, got different "
            f"{', '.join(differing)}; allowed: one value each, for a new slide to follow; ingest the cohort again and "
            "train in another folder"
        )
    return spec.origin.ingestion[0]


def _load_scorer(run_uri: str, options: PredictConfig) -> tuple[_Scorer, PredictionsSpec]:
    """The run's models and settings, and the ``config.json`` of predictions by them."""
    run, device = Run(run_uri), compute_device(options.use_gpu)
    spec, models = run.spec(), run.models(allow_program=options.allow_program)
    ingestion = cohort_ingestion(run_uri, spec)
    if options.default_mpp is not None:
        ingestion = parse_config(IngestConfig, ingestion.model_dump() | {"default_mpp": options.default_mpp})
    encoder = _installed_encoder(run_uri, spec, device, allow_program=options.allow_program)
    predictions = PredictionsSpec(
        milcore_version=__version__,
        run=run_uri,
        models_sha256=_models_digest(run_uri, spec),
        default_mpp=options.default_mpp,
        ingestion=ingestion,
        encoder=encoder,
        annotation_origin=options.annotation_origin,
    )
    encode = None if encoder is None else EncodeConfig(encoder=encoder.encoder, name=spec.train.features)
    files = AttentionFiles(options.attention_formats, options.annotation_origin)
    return _Scorer(spec, models, ingestion, encode, _decision_rule(run), predictions.digest, device, files), predictions


def _decision_rule(run: Run) -> DecisionRule | None:
    """Decision rule that evaluation chose on validation.

    None before evaluation, or where an earlier version did it.
    """
    metrics = read_metrics(run)
    if metrics is None:
        return None
    if "temperature" not in metrics:
        log_line(f"no class is predicted: an earlier version evaluated {run.uri}; run milcore evaluate again")
        return None
    threshold = None if metrics["threshold"] is None else Threshold(metrics["threshold"], metrics["threshold_origin"])
    return DecisionRule(threshold, Temperature(metrics["temperature"], metrics["temperature_origin"]))


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


def _models_digest(run_uri: str, spec: RunSpec) -> str:
    """SHA-256 over the run's model files."""
    models = [read_file(member.model_uri) for member in Run(run_uri).members(spec.folds)]
    return hashlib.sha256(b"".join(models)).hexdigest()


def _group_by_bag(slides: Sequence[Slide], spec: RunSpec) -> list[list[Slide]]:
    """The slides of each bag, in order of first appearance."""
    bags: dict[str, list[Slide]] = {}
    for slide in slides:
        bags.setdefault(slide.patient_id if _by_patient(spec) else slide.slide_id, []).append(slide)
    return list(bags.values())


def _score_bag(scorer: _Scorer, slides: list[Slide], records: Mapping[str, Record], out_uri: str) -> None:
    """Score the slides of a bag and write their records.

    Records of the same bag, files and settings stay.
    """
    bag = sorted(slide.slide_id for slide in slides)
    made_of = [{"seen": _source_version(slide), "bag": bag, "settings": scorer.settings} for slide in slides]
    stored = [records.get(slide.slide_id, {}) for slide in slides]
    if all(
        record.get("status") == "ok" and wanted.items() <= record.items()
        for record, wanted in zip(stored, made_of, strict=True)
    ):
        return
    for record, wanted in zip(_score_slides(scorer, slides, out_uri), made_of, strict=True):
        write_record(out_uri, record | wanted)


def _source_version(slide: Slide) -> list[object]:
    """URI, patient, mpp, and the file's size and version where reachable.

    A slide whose file cannot be reached is scored again.
    """
    try:
        size, version = (None, None) if uri_problem(slide.uri) else source_stat(slide.uri)
    except (*storage.IO_ERRORS, SlideError):
        size = None
    if size is None:
        return [slide.uri, slide.patient_id, slide.mpp]
    return [slide.uri, slide.patient_id, slide.mpp, size, version]


def _score_slides(scorer: _Scorer, slides: list[Slide], out_uri: str) -> Iterator[dict[str, Any]]:
    """Ingest and encode the slides of a bag, then predict all usable ones together."""
    with tempfile.TemporaryDirectory() as folder:
        store = PatchStore(storage.join(folder, "store"))
        outcomes = [ingest_slide(slide, store, scorer.ingest) for slide in slides]
        groups = [
            _encode_group(scorer, store, slide.slide_id)
            for slide, outcome in zip(slides, outcomes, strict=True)
            if outcome.status == "ok"
        ]
        prediction = _predict_bag(scorer, slides[0].patient_id, groups, out_uri) if groups else None
        patches = {group.slide_id: len(group) for group in groups}
        for slide, outcome in zip(slides, outcomes, strict=True):
            members = prediction.members.tolist() if prediction is not None and slide.slide_id in patches else None
            if members is None:
                remove_attention(storage.join(out_uri, ATTENTION), slide.slide_id)
            # the store, which is gone then, tells the file by the path from itself
            reason = outcome.reason and outcome.reason.replace(storage.relative(slide.uri, store.uri), slide.uri)
            yield {
                "slide_id": slide.slide_id, "patient_id": slide.patient_id, "uri": slide.uri, "status": outcome.status,
                "members": members, "patches": patches.get(slide.slide_id, 0), "reason": reason,
            }  # fmt: skip


def _encode_group(scorer: _Scorer, store: PatchStore, slide_id: str) -> SlideGroup:
    if scorer.encode is not None:
        encode_slide(store.uri, scorer.encode, scorer.device.type, slide_id)
    return store.slide(slide_id)


def _predict_bag(scorer: _Scorer, bag_id: str, groups: list[SlideGroup], out_uri: str) -> BagPrediction:
    """Predict a bag and write the attention of its slides."""
    config = scorer.spec.train
    names, lengths = tuple(group.slide_id for group in groups), tuple(len(group) for group in groups)
    entry = BagEntry(bag_id, bag_id, 0, "test", names, lengths)
    rows = ChainedRows([instance_rows(group, config) for group in groups])
    bags = Bags([entry], lambda _: rows, cache_bytes(config))
    prediction = predict_bags(scorer.models, bags, [0], scorer.device)[0]
    predicted_class = _predicted_class(scorer, prediction)
    label = prediction.likeliest if predicted_class is None else predicted_class
    of_bag = instance_columns(scorer.models, bags[0], label, with_leave_one_out=False)
    columns = {name: entry.by_slide(values) for name, values in of_bag.items()}
    for group, weight in zip(groups, entry.by_slide(prediction.attention).values(), strict=True):
        of_slide = {name: values[group.slide_id] for name, values in columns.items()}
        write_attention(storage.join(out_uri, ATTENTION), group, weight, scorer.files, of_slide)
    return prediction


def _row(scorer: _Scorer, record: dict[str, Any]) -> dict[str, Any]:
    """Row of a slide in the predictions, without probability where it is quarantined."""
    names = scorer.spec.classes
    row = {name: record[name] for name in ("slide_id", "patient_id", "uri", "status")}
    prediction = BagPrediction(np.array(record["members"]), np.empty(0)) if record["members"] else None
    predicted_class = None if prediction is None else _predicted_class(scorer, prediction)
    row["called"] = None if predicted_class is None else names[predicted_class]
    columns = {"probability": 1} if len(names) == 2 else {f"probability_{name}": k for k, name in enumerate(names)}
    for column, label in columns.items():
        calibrated = column.replace("probability", "calibrated")
        row[column] = None if prediction is None else float(prediction.probability[label])
        row[calibrated] = None if prediction is None else _calibrated_probability(scorer, prediction, label)
    shown = 1 if len(names) == 2 or prediction is None else prediction.likeliest
    row["spread"] = float(prediction.std[shown]) if prediction is not None and scorer.spec.folds else None
    return row | {"patches": record["patches"], "reason": record["reason"]}


def _predicted_class(scorer: _Scorer, prediction: BagPrediction) -> int | None:
    return None if scorer.rule is None else int(scorer.rule.predict(prediction.probability[None])[0])


def _calibrated_probability(scorer: _Scorer, prediction: BagPrediction, label: int) -> float | None:
    if scorer.rule is None:
        return None
    return float(calibrate(prediction.probability[None], scorer.rule.temperature.value)[0, label])


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
