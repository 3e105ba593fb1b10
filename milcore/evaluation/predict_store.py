"""Predict the slides of a store with a finished run.

They have features of milcore encode, imported ones, or patches, and are scored part by part, in this process or on many
machines, into one Parquet data set (``store_parts.py``). A bag passes through the models alone, so that no number
depends on parts or workers. The encoder of the store's features has to be that of the run's.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow as pa
import torch

from milcore import __version__
from milcore.config import InstanceOrigin, PredictConfig, TrainConfig
from milcore.errors import InputError, StoreError
from milcore.evaluation.attention.write import AttentionFiles, AttentionFolder, write_attention
from milcore.evaluation.decision import DecisionRule
from milcore.evaluation.predict import ATTENTION, RESEARCH_USE, cohort_origin
from milcore.evaluation.prediction_folder import StorePredictionsSpec, claim_predictions
from milcore.evaluation.prediction_rows import PREDICTION_ROWS
from milcore.evaluation.score_bags import attention_of_slides
from milcore.evaluation.scorer import Scorer, load_scorer, models_digest
from milcore.evaluation.store_parts import Part, StoreSlide, divide, store_slides
from milcore.mil.bags.bags import BagEntry
from milcore.mil.bags.load import open_bags
from milcore.mil.inference import BagPrediction, check_width, predict_one_by_one
from milcore.mil.memory import with_memory
from milcore.runtime import storage
from milcore.runtime.progress import track
from milcore.store.catalogue import Catalogue
from milcore.store.slide_group import SlideGroup
from milcore.store.slide_row import FEATURES, SlideRow
from milcore.store.store import PatchStore
from milcore.training.instances import FREE_SETTINGS, Instances, read_instances
from milcore.training.run_folder import Run, read_claim

PREDICTIONS = "predictions"
SUMMARY = "summary.json"
TEXTS = ("slide_id", "patient_id", "status", "called", "reason")
COUNTS = ("patches",)


class PartTask(NamedTuple):
    """Part to score, with the catalogue's rows of its slides.

    Args:
        rows: by slide; None where the slide's own objects are to be read.
    """

    part: Part
    rows: Mapping[str, SlideRow | None]


# applies a function to every part, in any order
FanOut = Callable[[Callable[[PartTask], int], Iterable[PartTask]], Iterable[int]]


class PartScoring(NamedTuple):
    """Settings and places that all parts share.

    Args:
        spec: the folder's ``config.json``.
        rule: of the run, as the names of the parts have it: it changes with an evaluation, which a worker that has
            loaded the models before does not see.
        out_uri: the folder.
        device: ``cpu`` or ``cuda``.
        workers_here: processes that share the memory of a machine.
        is_new: the folder holds no attention yet, so that it need not be listed.
    """

    spec: StorePredictionsSpec
    rule: DecisionRule | None
    out_uri: str
    device: str
    workers_here: int
    is_new: bool


def prepare_store_predictions(run_uri: str, store_uri: str, out_uri: str, options: PredictConfig) -> None:
    """Check that a run can score a store, and claim the folder of predictions.

    Args:
        run_uri: a finished run.
        store_uri: a patch store; slides of its manifest that it lacks, or has in quarantine, are told in the results.
        out_uri: the folder; the same settings resume it.
        options: of the prediction.

    Raises:
        InputError: the run is not finished, its models read features of another width, or patches where features are
            named, or the folder holds other predictions.
        StoreError: the store has no slide to score, slides lack the features, or they are of another encoder or
            ingestion than the run's, or may be.
    """
    run, store = Run(run_uri), PatchStore(store_uri)
    spec = run.spec()
    models = run.models(allow_program=options.allow_program, spec=spec)
    cohort = cohort_origin(run.uri, spec)
    features = _features(spec.train, options)
    catalogue = store.catalogue()
    if not catalogue.slide_ids():
        raise StoreError(
            f"{store.uri}: expected slides to score, got none of {len(catalogue.all_ids)} that is ok; run milcore "
            "ingest or milcore import"
        )
    origin = _instances(catalogue, spec.train, features).origin
    check_ingestion(store.uri, cohort, origin, of_patches=features is None)
    is_vouched = False
    if features is not None:
        is_vouched = not is_same_encoder(store.uri, cohort, origin, vouched=options.same_encoder)
        check_width(models, catalogue.slide(catalogue.slide_ids()[0]).features(features).shape[1])
    claim_predictions(
        out_uri,
        StorePredictionsSpec(
            milcore_version=__version__,
            run=run.uri,
            store=store.uri,
            models_sha256=models_digest(run, spec),
            features=features,
            encoder=cohort.encoder,
            encoder_id=cohort.encoder_id,
            same_encoder=is_vouched,
            attention_formats=options.attention_formats or (),
            annotation_origin=options.annotation_origin,
        ),
    )


def _features(train: TrainConfig, options: PredictConfig) -> str | None:
    """Name of the features that are scored; None with patches.

    Raises:
        InputError: settings of features are given to a run on patches.
    """
    if train.features is not None:
        return options.features or train.features
    given = {"features": options.features, "same_encoder": options.same_encoder}
    for name, value in given.items():
        if value:
            raise InputError(
                f"{name}: expected none for a run on patches, got {value!r}; allowed: runs on features; leave it out"
            )
    return None


def _instances(catalogue: Catalogue, train: TrainConfig, features: str | None) -> Instances:
    """Digests and origin of the instances of all slides that are ok."""
    return read_instances(catalogue, train.model_copy(update={"features": features}), catalogue.slide_ids())


def is_same_encoder(store_uri: str, cohort: InstanceOrigin, store: InstanceOrigin, *, vouched: bool) -> bool:
    """True where encoders are known to be one; false where the user vouches.

    By the digests of encoders that milcore ran, or the texts that imports were given.

    Args:
        store_uri: of the store.
        cohort: of the run.
        store: of the store's features.
        vouched: the user says that they are, where it is not known.

    Raises:
        StoreError: they are of another, or may be and the user does not vouch.
    """
    if cohort.encoder is not None and store.encoder is not None:
        differing = cohort.encoder.differences(store.encoder)
        if differing:
            raise StoreError(
                f"{store_uri}: expected features of the encoder that made the run's, {cohort.encoder.encoder}, got "
                f"those of {store.encoder.encoder} with another {' and '.join(differing)}; run milcore encode with the "
                "former"
            )
        return True
    if cohort.encoder_id is not None and store.encoder_id is not None:
        if cohort.encoder_id != store.encoder_id:
            raise StoreError(
                f"{store_uri}: expected features of the encoder that made the run's, encoder_id {cohort.encoder_id!r}, "
                f"got {store.encoder_id!r}; allowed: the same text; import features of that encoder"
            )
        return True
    if vouched:
        return False
    raise StoreError(
        f"{store_uri}: expected features of the encoder that made the run's, {_encoder_text(cohort)}, got "
        f"{_encoder_text(store)}, so that it cannot be told; allowed: milcore import with one --encoder-id for both "
        "cohorts, milcore encode for both, or --same-encoder where you know that they are"
    )


def _encoder_text(origin: InstanceOrigin) -> str:
    if origin.encoder is not None:
        return f"{origin.encoder.encoder} by its weights"
    return "an import without encoder_id" if origin.encoder_id is None else f"encoder_id {origin.encoder_id!r}"


def check_ingestion(store_uri: str, cohort: InstanceOrigin, store: InstanceOrigin, *, of_patches: bool) -> None:
    """Check that ingested slides were cut as those of the cohort.

    Args:
        store_uri: of the slides.
        cohort: origin of the run's instances.
        store: origin of those of the store.
        of_patches: True where the run reads patches.

    Raises:
        StoreError: they were cut otherwise, or, of patches, only one of the two was ingested.
    """
    if of_patches and bool(cohort.ingestion) != bool(store.ingestion):
        kinds = ("ingested", "imported") if cohort.ingestion else ("imported", "ingested")
        raise StoreError(
            f"{store_uri}: expected patches that were {kinds[0]} as those of the run, got {kinds[1]} ones; nothing "
            "tells that they were cut alike; take a store of the same kind"
        )
    if not cohort.ingestion or not store.ingestion:
        return  # imported features: what made them tells; imported patches of both: nothing is recorded
    allowed = [config.model_dump(exclude=FREE_SETTINGS) for config in cohort.ingestion]
    for config in store.ingestion:
        values = config.model_dump(exclude=FREE_SETTINGS)
        differing = [name for name, value in values.items() if value not in [each[name] for each in allowed]]
        if values not in allowed:
            raise StoreError(
                f"{store_uri}: expected slides ingested as those of the run, got another "
                f"{', '.join(differing) or 'combination of settings'} "
                f"({', '.join(f'{name} {values[name]}' for name in differing)}); ingest them again by the run's "
                "settings"
            )


def predict_parts(out_uri: str, device: str, fan_out: FanOut = map, workers_here: int = 1) -> None:
    """Score the parts that a prepared folder lacks, and write ``summary.json`` last.

    Args:
        out_uri: the folder of predictions.
        device: ``cpu`` or ``cuda``.
        fan_out: applies a function to every part, in any order.
        workers_here: processes that share the memory of a machine.

    Raises:
        StoreError: a slide of the store is damaged, or another program changes it meanwhile.
    """
    out_uri = storage.absolute(out_uri)
    spec = read_claim(StorePredictionsSpec, out_uri, "predictions", "predict --store")
    _scorer.cache_clear()  # the run may have been evaluated since the last call
    scorer = _scorer(spec, device, workers_here)
    store = PatchStore(spec.store)
    manifest, train = store.manifest(), scorer.spec.train
    catalogue = store.catalogue([slide.slide_id for slide in manifest.slides])
    slides = store_slides(manifest, catalogue)
    settings = [spec.model_dump(mode="json", exclude={"milcore_version", *spec.folders}), _rule_values(scorer.rule)]
    digests = _instances(catalogue, train, spec.features).digests
    parts = divide(slides, digests, settings, by_patient=scorer.by_patient)
    folder = storage.join(out_uri, PREDICTIONS)
    present = set(storage.names(folder))
    lacking, superseded = [part for part in parts if part.file not in present], present - {part.file for part in parts}
    if lacking or superseded:
        storage.remove(storage.join(out_uri, SUMMARY))
    is_new = not (spec.attention_formats and storage.names(storage.join(out_uri, ATTENTION)))
    scoring = PartScoring(spec, scorer.rule, out_uri, device, workers_here, is_new)
    tasks = (PartTask(part, _rows(catalogue, part, spec)) for part in lacking)
    for _ in track(fan_out(functools.partial(score_part, scoring), tasks), "predict, parts", len(lacking)):
        pass
    storage.remove_all(storage.join(folder, name) for name in superseded)
    summary = _summary(scorer, spec.with_folders(lambda uri: storage.relative(uri, out_uri)), slides)
    storage.write_json(storage.join(out_uri, SUMMARY), summary)


def _summary(scorer: Scorer, spec: StorePredictionsSpec, slides: Sequence[StoreSlide]) -> dict[str, Any]:
    """The content of ``summary.json``."""
    quarantined = sum(slide.reason is not None for slide in slides)
    return {
        "run": spec.run,
        "store": spec.store,
        **PREDICTION_ROWS[scorer.spec.train.target].summary(scorer),
        "folds": scorer.spec.folds,
        "bag": scorer.spec.train.bag,
        "features": spec.features,
        "same_encoder": spec.same_encoder,
        "slides_ok": len(slides) - quarantined,
        "slides_quarantined": quarantined,
        "notice": RESEARCH_USE,
    }


def read_store_predictions(out_uri: str) -> dict[str, Any]:
    """Read a finished folder of predictions of a store.

    Returns:
        As ``predict`` of slides returns it: ``ok``, ``quarantined``, ``slides``, and what ``summary.json`` holds.

    Raises:
        InputError: the predictions are not finished.
        DamageError: a file is not what was written.
    """
    uri = storage.join(out_uri, SUMMARY)
    try:
        summary = dict(storage.read_json(uri))
    except FileNotFoundError:
        raise InputError(
            f"{out_uri}: expected predictions of a store, got none that are finished ({SUMMARY} is missing); run "
            "milcore predict again"
        ) from None
    folder = storage.join(out_uri, PREDICTIONS)
    parts = storage.read_all([storage.join(folder, name) for name in storage.names(folder)])
    rows = [row for name in sorted(parts) for row in storage.check_table(parts[name], name).to_pylist()]
    return summary | {
        **{name: storage.resolve(summary[name], out_uri) for name in StorePredictionsSpec.folders},
        "ok": [row["slide_id"] for row in rows if row["status"] == "ok"],
        "quarantined": {row["slide_id"]: row["reason"] for row in rows if row["status"] != "ok"},
        "slides": rows,
    }


def _rule_values(rule: DecisionRule | None) -> list[float | None]:
    if rule is None:
        return []
    return [None if rule.threshold is None else rule.threshold.value, rule.temperature.value]


def _rows(catalogue: Catalogue, part: Part, spec: StorePredictionsSpec) -> dict[str, SlideRow | None]:
    """Rows of the usable slides of a part, with the arrays that are read."""
    rows: dict[str, SlideRow | None] = {}
    for slide_id in part.usable:
        row = catalogue.row(slide_id)
        if row is not None and not spec.attention_formats:
            array = "patches" if spec.features is None else f"{FEATURES}{spec.features}"
            row = row._replace(arrays={name: of_array for name, of_array in row.arrays.items() if name == array})
        rows[slide_id] = row
    return rows


def score_part(scoring: PartScoring, task: PartTask) -> int:
    """Score the bags of a part; the number of its slides.

    Its rows are written after their attention.
    """
    scorer = _scorer(scoring.spec, scoring.device, scoring.workers_here)._replace(rule=scoring.rule)
    store, part = PatchStore(scoring.spec.store), task.part
    groups = {slide_id: store.slide(slide_id, task.rows[slide_id]) for slide_id in part.usable}
    predictions = dict(_predict_bags(scoring, scorer, part, groups))
    columns = PREDICTION_ROWS[scorer.spec.train.target].columns
    rows = [
        _row(slide, columns(scorer, predictions.get(slide.slide_id)), groups.get(slide.slide_id))
        for bag in part.bags
        for slide in bag
    ]
    storage.write_table(storage.join(scoring.out_uri, PREDICTIONS, part.file), _table(rows, scoring.spec))
    return len(rows)


@functools.lru_cache(maxsize=1)
def _scorer(spec: StorePredictionsSpec, device: str, workers_here: int) -> Scorer:
    """The run's models; a process loads them once."""
    # prepare_store_predictions has checked that the encoder is no program, or is allowed
    scorer = load_scorer(spec.run, torch.device(device), allow_program=True, workers_here=workers_here)
    train = scorer.spec.train.model_copy(update={"features": spec.features})
    return scorer._replace(spec=scorer.spec.model_copy(update={"train": with_memory(train, workers_here)}))


def _predict_bags(
    scoring: PartScoring, scorer: Scorer, part: Part, groups: Mapping[str, SlideGroup]
) -> Iterator[tuple[str, BagPrediction]]:
    """Prediction of each usable slide; its attention is written first.

    That of other slides, which were usable before, is removed.
    """
    entries = [entry for bag in part.bags if (entry := _entry(bag, groups)) is not None]
    files = AttentionFiles(scoring.spec.attention_formats, scoring.spec.annotation_origin)
    attention = AttentionFolder(storage.join(scoring.out_uri, ATTENTION), files)
    if files.formats and not scoring.is_new:
        for slide in (slide for bag in part.bags for slide in bag if slide.reason is not None):
            attention.remove(slide.slide_id)
    if not entries:
        return
    bags = open_bags(entries, groups, scorer.spec.train)
    for index, prediction in enumerate(predict_one_by_one(scorer.models, bags, scorer.device)):
        entry = entries[index]
        if files.formats:
            of_slides = attention_of_slides(scorer, entry, bags[index], prediction)
            for slide_id, (weight, columns) in of_slides.items():
                write_attention(attention, groups[slide_id], weight, columns, is_new=scoring.is_new)
        yield from ((slide_id, prediction) for slide_id in entry.slides)


def _entry(bag: Iterable[StoreSlide], groups: Mapping[str, SlideGroup]) -> BagEntry | None:
    """Entry of the usable slides of a bag; None where there is none."""
    usable = [slide for slide in bag if slide.reason is None]
    if not usable:
        return None
    lengths = tuple(len(groups[slide.slide_id]) for slide in usable)
    first = usable[0]
    return BagEntry(first.slide_id, first.patient_id, 0, "test", tuple(slide.slide_id for slide in usable), lengths)


def _row(slide: StoreSlide, columns: Mapping[str, Any], group: SlideGroup | None) -> dict[str, Any]:
    status = "ok" if slide.reason is None else "quarantined"
    row = {"slide_id": slide.slide_id, "patient_id": slide.patient_id, "status": status}
    return {**row, **columns, "patches": 0 if group is None else len(group), "reason": slide.reason}


def _table(rows: list[dict[str, Any]], spec: StorePredictionsSpec) -> pa.Table:
    """Rows of a part; all parts have one schema."""
    fields = [(name, _type_of(name)) for name in rows[0]]
    metadata = {"same_encoder": "true" if spec.same_encoder else "false", "notice": RESEARCH_USE}
    return pa.Table.from_pylist(rows, pa.schema(fields, metadata))


def _type_of(column: str) -> pa.DataType:
    return pa.string() if column in TEXTS else pa.int64() if column in COUNTS else pa.float64()
