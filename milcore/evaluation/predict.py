"""Predict new slides with a finished run and its ingestion and encoder settings.

Each bag passes through a temporary store of its own, so that the cohort's store stays as the run was trained on it.
Results are written bag by bag, and a slide that has not changed is not scored again. A slide that cannot be used is
quarantined with its reason; the others are scored.
"""

import csv
import hashlib
import io
import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import torch

from milcore.cohort.manifest import Slide, read_manifest
from milcore.config import ATTENTION_FORMATS, EncodeConfig, IngestConfig, RunSpec, parse_config
from milcore.encoders.extraction.encode import encode_slide, load_encoder
from milcore.errors import InputError, StoreError
from milcore.evaluation.attention.write import write_attention
from milcore.evaluation.decision import DecisionRule
from milcore.ingestion.slide import ingest_slide
from milcore.metrics.calibration import Temperature, calibrate
from milcore.metrics.classification import Threshold
from milcore.mil.bags.bags import BagEntry, Bags
from milcore.mil.bags.load import cache_bytes, instance_rows
from milcore.mil.bags.rows import ChainedRows
from milcore.mil.inference import BagPrediction, instance_columns, predict_bags
from milcore.mil.model import MILModel
from milcore.runtime import storage
from milcore.runtime.progress import track
from milcore.store.slide_group import SlideGroup
from milcore.store.store import PatchStore
from milcore.training.run_folder import Run, claim_folder

FREE_SETTINGS = ("default_mpp", "max_unreadable", "slide_mpp")
RESEARCH_USE = "Research use only. Not for diagnosis."
SLIDES = "slides"
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n")
SIGNED_NUMBER = re.compile(r"[+-][0-9]+(\.[0-9]+)?")


class _Scorer(NamedTuple):
    """Models and settings of a run that score new slides.

    ``rule`` is None where the run has not been evaluated; ``encode`` is None where the models take patches.
    """

    spec: RunSpec
    models: tuple[MILModel, ...]
    ingest: IngestConfig
    encode: EncodeConfig | None
    rule: DecisionRule | None
    device: torch.device


def predict(
    run_uri: str, slide_uris: Sequence[str], out_uri: str, default_mpp: float | None = None, *, use_gpu: bool = False
) -> dict[str, Any]:
    """Score slide files, each a patient of its own: ``predict_slides``.

    Raises:
        InputError: the run is not finished, no slide is named, or ``out_uri`` holds predictions of another run.
        StoreError: the cohort was not ingested or encoded in one way that could be repeated.
    """
    if not slide_uris:
        raise InputError("slides: expected at least one slide, got none; allowed: paths or URIs of slide files")
    uris = [storage.absolute(uri) for uri in slide_uris]
    slides = [_slide_without_label(name, uri) for name, uri in zip(slide_names(uris), uris, strict=True)]
    return predict_slides(run_uri, slides, out_uri, default_mpp, use_gpu=use_gpu)


def predict_manifest(
    run_uri: str, manifest_uri: str, out_uri: str, default_mpp: float | None = None, *, use_gpu: bool = False
) -> dict[str, Any]:
    """Score every slide of a manifest: ``predict_slides``.

    Labels, where the manifest has any, are not read.

    Raises:
        InputError: the manifest has bad rows, or as ``predict``.
        StoreError: as ``predict``.
    """
    manifest = read_manifest(manifest_uri, required=("slide_id", "uri"))
    return predict_slides(run_uri, manifest.slides, out_uri, default_mpp, use_gpu=use_gpu)


def predict_slides(
    run_uri: str, slides: Sequence[Slide], out_uri: str, default_mpp: float | None, *, use_gpu: bool
) -> dict[str, Any]:
    """Score slides and write their predictions and attention below ``out_uri``.

    Writes ``predictions.csv`` and ``predictions.json`` with a row per slide: probability (one column per class if more
    than two), the same calibrated by the run's temperature, the standard deviation over the folds' models, and the
    predicted class. Where the run's bags are patients, all slides of a patient share the values of their bag.

    Args:
        run_uri: a finished run; without an evaluation there is no predicted class and no calibrated probability.
        slides: to score.
        out_uri: folder to write into; its results for unchanged slides are reused.
        default_mpp: um/px of slides that carry none; None takes the cohort's own default.
        use_gpu: compute on a CUDA device.

    Returns:
        The content of ``predictions.json``: ``ok`` (slide ids), ``quarantined`` (id to reason) and ``slides``.
    """
    run_uri, device = storage.absolute(run_uri), torch.device("cuda" if use_gpu else "cpu")
    scorer = _load_scorer(run_uri, default_mpp, device)
    claim_folder(
        out_uri, {"run": run_uri, "models_sha256": _models_digest(run_uri, scorer.spec), "default_mpp": default_mpp}
    )
    bags = _group_by_bag(slides, scorer.spec)
    records = [record for bag in track(bags, "predict", len(bags)) for record in _bag_records(scorer, bag, out_uri)]
    rows = [_row(scorer, record) for record in records]
    summary = {
        "run": run_uri,
        "classes": list(scorer.spec.classes),
        "threshold": scorer.rule.threshold.value if scorer.rule and scorer.rule.threshold else None,
        "temperature": scorer.rule.temperature.value if scorer.rule else None,
        "folds": scorer.spec.folds,
        "bag": scorer.spec.train.bag,
        "ok": [row["slide_id"] for row in rows if row["status"] == "ok"],
        "quarantined": {row["slide_id"]: row["reason"] for row in rows if row["status"] != "ok"},
        "slides": rows,
        "notice": RESEARCH_USE,
    }
    storage.write_bytes(storage.join(out_uri, "predictions.csv"), _csv(rows))
    storage.write_json(storage.join(out_uri, "predictions.json"), summary)
    return summary


def slide_names(uris: Sequence[str]) -> list[str]:
    """A unique slide id for each file, from its name without suffix.

    Characters that an id cannot hold become ``_``; equal names are numbered.
    """
    names: list[str] = []
    for uri in uris:
        stem = re.sub(r"[^A-Za-z0-9._-]", "_", PurePosixPath(uri).stem).lstrip("._-") or "slide"
        alike = (f"{stem}-{k}" for k in range(2, len(uris) + 2))
        names.append(stem if stem not in names else next(name for name in alike if name not in names))
    return names


def cohort_ingestion(store: PatchStore, slide_ids: Sequence[str]) -> IngestConfig:
    """Ingestion settings that all slides of a cohort share.

    Raises:
        StoreError: the slides were ingested with different settings, or imported.
    """
    records = store.records()
    of_run = [record for name in slide_ids if (record := records.get(name)) is not None]
    if any(record.import_origin is not None for record in of_run):
        raise StoreError(
            f"{store.uri}: expected ingested slides, got imported ones, whose ingestion cannot be repeated on a new "
            "slide; allowed: a run on a store of milcore ingest; import new slides beside the others and evaluate"
        )
    settings = [record.parameters for record in of_run if record.parameters is not None]
    if not settings:
        raise StoreError(
            f"{store.uri}: expected the run's slides, got none of them, so that their ingestion cannot be repeated; "
            "allowed: the store that the run was trained on"
        )
    first = settings[0]
    differing = sorted(
        {name for other in settings for name in first if name not in FREE_SETTINGS and other[name] != first[name]}
    )
    if differing:
        raise StoreError(
            f"{store.uri}: expected slides ingested with the same settings, got different {', '.join(differing)}; "
            "allowed: one value each, for a new slide to follow; ingest the cohort again"
        )
    return parse_config(IngestConfig, {name: value for name, value in first.items() if name != "slide_mpp"})


def _slide_without_label(slide_id: str, uri: str) -> Slide:
    # Slide requires a label; prediction does not read it
    return Slide(slide_id, uri, label=0, patient_id=slide_id, site="", mpp=None, split=None, annotation=None)


def _load_scorer(run_uri: str, default_mpp: float | None, device: torch.device) -> _Scorer:
    run = Run(run_uri)
    spec, models = run.spec(), run.models()
    store = PatchStore(spec.store_uri)
    slide_ids = run.splits()["slide_id"].to_pylist()
    config = cohort_ingestion(store, slide_ids)
    if default_mpp is not None:
        config = parse_config(IngestConfig, config.model_dump() | {"default_mpp": default_mpp})
    return _Scorer(
        spec, models, config, _encode_config(spec, store.slide(slide_ids[0]), device), _decision_rule(run), device
    )


def _decision_rule(run: Run) -> DecisionRule | None:
    """Decision rule that evaluation chose on validation."""
    metrics = run.metrics()
    if metrics is None:
        return None
    threshold = None if metrics["threshold"] is None else Threshold(metrics["threshold"], metrics["threshold_origin"])
    return DecisionRule(threshold, Temperature(metrics["temperature"], metrics["temperature_origin"]))


def _encode_config(spec: RunSpec, slide: SlideGroup, device: torch.device) -> EncodeConfig | None:
    """Encoder settings of the run's features; None where the model takes patches.

    Raises:
        StoreError: the encoder installed here has other weights or another transform.
    """
    if spec.train.features is None:
        return None
    attrs = slide.feature_attrs(spec.train.features)
    config = parse_config(EncodeConfig, {"encoder": attrs["encoder"], "name": spec.train.features})
    encoder = load_encoder(config.encoder, device.type)
    installed = {"weights_digest": encoder.weights_digest, "transform": encoder.transform_text}
    changed = [name for name, value in installed.items() if attrs[name] != value]
    if changed:
        raise StoreError(
            f"encoder {config.encoder}: expected the {', '.join(changed)} that made features/{spec.train.features}, "
            "got another; install the version the cohort was encoded with"
        )
    return config


def _models_digest(run_uri: str, spec: RunSpec) -> str:
    """SHA-256 over the run's model files."""
    models = [storage.read_bytes(member.model_uri) for member in Run(run_uri).members(spec.folds)]
    return hashlib.sha256(b"".join(models)).hexdigest()


def _group_by_bag(slides: Sequence[Slide], spec: RunSpec) -> list[list[Slide]]:
    """The slides of each bag, in order of first appearance."""
    bags: dict[str, list[Slide]] = {}
    for slide in slides:
        bags.setdefault(slide.patient_id if spec.train.bag == "patient" else slide.slide_id, []).append(slide)
    return list(bags.values())


def _bag_records(scorer: _Scorer, slides: list[Slide], out_uri: str) -> list[dict[str, Any]]:
    """Records of a bag's slides, reused where no slide has changed."""
    versions = [_source_version(slide) for slide in slides]
    uris = [storage.join(out_uri, SLIDES, f"{slide.slide_id}.json") for slide in slides]
    stored = [storage.read_json(uri) if storage.exists(uri) else {} for uri in uris]
    if all(
        record.get("seen") == version and record["status"] == "ok"
        for record, version in zip(stored, versions, strict=True)
    ):
        return stored
    computed = _score_slides(scorer, slides, out_uri)
    records = [record | {"seen": version} for record, version in zip(computed, versions, strict=True)]
    for uri, record in zip(uris, records, strict=True):
        storage.write_json(uri, record)
    return records


def _source_version(slide: Slide) -> list[object]:
    """URI, patient, mpp, and the file's size and version where reachable.

    A slide whose file cannot be reached is scored again.
    """
    try:
        size, version = storage.stat(slide.uri)
    except storage.IO_ERRORS:
        return [slide.uri, slide.patient_id, slide.mpp]
    return [slide.uri, slide.patient_id, slide.mpp, size, version]


def _score_slides(scorer: _Scorer, slides: list[Slide], out_uri: str) -> Iterator[dict[str, Any]]:
    """Ingest and encode the slides of a bag, then predict all usable ones together."""
    with tempfile.TemporaryDirectory() as folder:
        store = PatchStore(folder)
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
            yield {
                "slide_id": slide.slide_id, "patient_id": slide.patient_id, "uri": slide.uri, "status": outcome.status,
                "members": members, "patches": patches.get(slide.slide_id, 0), "reason": outcome.reason,
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
        write_attention(storage.join(out_uri, "attention"), group, weight, ATTENTION_FORMATS, of_slide)
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
