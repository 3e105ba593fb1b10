"""Scores new slides with a finished run, through the ingestion and encoder settings that the run was trained on.

Each slide passes through a temporary store of its own, so that the cohort's store stays what the run was trained on. A
slide that cannot be used is quarantined with its reason; the others go on.
"""

import csv
import io
import re
import tempfile
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import torch

from milcore import storage
from milcore.artifacts import write_attention
from milcore.bags import BagEntry, Bags
from milcore.config import ATTENTION_FORMATS, EncodeConfig, IngestConfig, RunSpec, parse_config
from milcore.encoders.encode import encode_slide, load_encoder
from milcore.errors import InputError, StoreError
from milcore.evaluate import ATTENTION, METRICS
from milcore.explain import Explained, explain
from milcore.ingest import ingest_slide
from milcore.manifest import Slide
from milcore.model import MILModel
from milcore.progress import track
from milcore.run import cache_bytes, instance_rows, load_models, read_splits
from milcore.store import PatchStore, SlideGroup

FREE_SETTINGS = ("default_mpp", "max_unreadable", "slide_mpp")
RESEARCH_USE = "Research use only. Not for diagnosis."


class Prediction(NamedTuple):
    """One row of ``predictions.csv``; a quarantined slide has no probability but a reason.

    ``called`` is the class at the run's threshold, None where the run has not been evaluated.
    """

    slide_id: str
    uri: str
    status: str
    probability: float | None
    called: str | None
    patches: int
    reason: str | None


class _Scorer(NamedTuple):
    """A run made ready for new slides."""

    spec: RunSpec
    models: tuple[MILModel, ...]
    ingest: IngestConfig
    encode: EncodeConfig | None
    threshold: float | None
    device: torch.device


def predict(
    run_uri: str, slide_uris: Sequence[str], out_uri: str, default_mpp: float | None = None, *, use_gpu: bool = False
) -> dict[str, Any]:
    """Score slides; write ``predictions.csv``, ``predictions.json`` and each slide's attention below ``out_uri``.

    Args:
        run_uri: a finished run.
        slide_uris: slide files.
        out_uri: folder to write into.
        default_mpp: um/px of slides that carry none; None takes the cohort's own default.
        use_gpu: compute on a CUDA device.

    Returns:
        The content of ``predictions.json``: ``ok`` (slide ids), ``quarantined`` (id to reason) and ``slides``.

    Raises:
        InputError: the run is not finished or no slide is named.
        StoreError: the cohort was not ingested or encoded in one way that could be repeated.
    """
    if not slide_uris:
        raise InputError("no slide to predict; name at least one file")
    scorer = _ready(storage.absolute(run_uri), default_mpp, torch.device("cuda" if use_gpu else "cpu"))
    uris = [storage.absolute(uri) for uri in slide_uris]
    named = list(zip(slide_names(uris), uris, strict=True))
    rows = [_predict_slide(scorer, name, uri, out_uri) for name, uri in track(named, "predict", len(named))]
    summary = {
        "run": storage.absolute(run_uri),
        "classes": list(scorer.spec.classes),
        "threshold": scorer.threshold,
        "ok": [row.slide_id for row in rows if row.status == "ok"],
        "quarantined": {row.slide_id: row.reason for row in rows if row.status != "ok"},
        "slides": [row._asdict() for row in rows],
        "notice": RESEARCH_USE,
    }
    storage.write_bytes(storage.join(out_uri, "predictions.csv"), _csv(rows))
    storage.write_json(storage.join(out_uri, "predictions.json"), summary)
    return summary


def slide_names(uris: Sequence[str]) -> list[str]:
    """A slide id for each file: its name without suffix, made safe, numbered where two are alike."""
    names: list[str] = []
    for uri in uris:
        stem = re.sub(r"[^A-Za-z0-9._-]", "_", PurePosixPath(uri).stem).lstrip("._-") or "slide"
        alike = (f"{stem}-{k}" for k in range(2, len(uris) + 2))
        names.append(stem if stem not in names else next(name for name in alike if name not in names))
    return names


def cohort_ingestion(store: PatchStore, slide_ids: Sequence[str]) -> IngestConfig:
    """The settings with which all slides of a cohort were cut into patches.

    Raises:
        StoreError: they were cut with different ones, or elsewhere.
    """
    statuses = store.statuses()
    held = [status.attrs for name in slide_ids if (status := statuses.get(name)) is not None]
    if any("imported" in attrs for attrs in held):
        raise StoreError(
            f"the slides of {store.uri} were imported: what made them elsewhere cannot be repeated on a new slide; "
            "allowed: a run on a store of milcore ingest; import new slides beside the others and evaluate"
        )
    found = [attrs["parameters"] for attrs in held]
    if not found:
        raise StoreError(f"{store.uri} holds none of the run's slides; its ingestion settings cannot be repeated")
    first = found[0]
    differing = sorted(
        {name for its in found for name in first if name not in FREE_SETTINGS and its[name] != first[name]}
    )
    if differing:
        raise StoreError(
            f"the slides of {store.uri} were ingested with different {', '.join(differing)}; "
            "a new slide can follow one setting only; ingest the cohort again"
        )
    return parse_config(IngestConfig, {name: value for name, value in first.items() if name != "slide_mpp"})


def _ready(run_uri: str, default_mpp: float | None, device: torch.device) -> _Scorer:
    spec, models = load_models(run_uri)
    store = PatchStore(spec.store_uri)
    slide_ids = read_splits(run_uri)["slide_id"].to_pylist()
    config = cohort_ingestion(store, slide_ids)
    if default_mpp is not None:
        config = parse_config(IngestConfig, config.model_dump() | {"default_mpp": default_mpp})
    metrics_uri = storage.join(run_uri, METRICS)
    threshold = storage.read_json(metrics_uri)["threshold"] if storage.exists(metrics_uri) else None
    return _Scorer(spec, models, config, _encoding(spec, store.slide(slide_ids[0]), device), threshold, device)


def _encoding(spec: RunSpec, slide: SlideGroup, device: torch.device) -> EncodeConfig | None:
    """The encoder of the run's features, checked to be the same weights; None where the model sees patches.

    Raises:
        StoreError: the encoder here is another one.
    """
    if spec.train.features is None:
        return None
    made = slide.feature_attrs(spec.train.features)
    config = parse_config(EncodeConfig, {"encoder": made["encoder"], "name": spec.train.features})
    encoder = load_encoder(config.encoder, device.type)
    here = {"weights_digest": encoder.weights_digest, "transform": encoder.transform}
    changed = [name for name, value in here.items() if made[name] != value]
    if changed:
        raise StoreError(
            f"encoder {config.encoder} here has another {', '.join(changed)} than the one that made "
            f"features/{spec.train.features}; install the version the cohort was encoded with"
        )
    return config


def _predict_slide(scorer: _Scorer, slide_id: str, uri: str, out_uri: str) -> Prediction:
    with tempfile.TemporaryDirectory() as folder:
        store = PatchStore(folder)
        # the label is asked for by the manifest's form; nothing on this path reads it
        new = Slide(slide_id, uri, label=0, patient_id=slide_id, site="", mpp=None, split=None, annotation=None)
        outcome = ingest_slide(new, store, scorer.ingest)
        if outcome.status != "ok":
            return Prediction(slide_id, uri, outcome.status, None, None, 0, outcome.reason)
        if scorer.encode is not None:
            encode_slide(store.uri, scorer.encode, scorer.device.type, slide_id)
        slide = store.slide(slide_id)
        said = _explain(scorer, slide)
        write_attention(storage.join(out_uri, ATTENTION), slide, said.attention, ATTENTION_FORMATS)
        return Prediction(
            slide_id,
            uri,
            "ok",
            float(said.probability[1]),
            _called(scorer, said.probability[1]),
            len(slide),
            None,
        )


def _explain(scorer: _Scorer, slide: SlideGroup) -> Explained:
    config = scorer.spec.train
    entry = BagEntry.of_slide(slide.slide_id, slide.slide_id, 0, "test", len(slide))
    bags = Bags([entry], lambda _: instance_rows(slide, config), cache_bytes(config))
    return explain(scorer.models, bags, [0], scorer.device)[0]


def _called(scorer: _Scorer, probability: float) -> str | None:
    return None if scorer.threshold is None else scorer.spec.classes[int(probability >= scorer.threshold)]


def _csv(rows: Sequence[Prediction]) -> bytes:
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator="\n")
    writer.writerow(Prediction._fields)
    writer.writerows(rows)
    return sink.getvalue().encode()
