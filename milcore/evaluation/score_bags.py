"""Score bags of new slides by the models and settings of a run.

Each bag passes through a temporary store of its own. While its attention and records are written, the next is scored.
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from milcore.cohort.manifest import Slide
from milcore.config import EncodeConfig, IngestConfig
from milcore.encoders.extraction.encode import encode_slide
from milcore.errors import SlideError
from milcore.evaluation.attention.write import AttentionFolder, write_attention
from milcore.evaluation.prediction_folder import Record, RecordFolder
from milcore.evaluation.scorer import Scorer
from milcore.ingestion.slide import ingest_slide
from milcore.mil.bags.bags import BagEntry
from milcore.mil.bags.batch import Bag
from milcore.mil.bags.load import open_bags
from milcore.mil.inference import BagPrediction, instance_columns, predict_bags
from milcore.runtime import storage
from milcore.runtime.allow_list import uri_problem
from milcore.runtime.progress import track
from milcore.runtime.threads import map_in_threads
from milcore.slides.source import SourceVersion, source_stat, source_versions
from milcore.store.slide_group import SlideGroup
from milcore.store.store import PatchStore

# each keeps the temporary store of its bag until it ends
WRITING_THREADS = 2


class SlideSettings(NamedTuple):
    """Settings that a slide passes through before its bag is scored.

    ``encode`` is None where the models take patches. ``digest`` is that of all that the folder's predictions depend on.
    """

    ingest: IngestConfig
    encode: EncodeConfig | None
    digest: str


class _SlideScore(NamedTuple):
    """Record of a slide, with its attention where it has some."""

    record: Record
    group: SlideGroup | None
    weight: np.ndarray
    columns: dict[str, np.ndarray]


class _ScoredBag(NamedTuple):
    """Slides of a bag, and the folder of their temporary store."""

    slides: list[_SlideScore]
    folder: "tempfile.TemporaryDirectory[str]"


def score_bags(  # noqa: PLR0913 - models, settings, slides, and the two folders
    scorer: Scorer,
    settings: SlideSettings,
    slides: Sequence[Slide],
    records: Mapping[str, Record],
    *,
    folder: RecordFolder,
    attention: AttentionFolder,
) -> None:
    """Score slides bag by bag, and write their attention and records.

    Records of the same bag, files and settings stay.

    Args:
        scorer: of the run.
        settings: of ingestion and encoding, as the run's.
        slides: all slides of each bag.
        records: of the folder, by id.
        folder: to write records into.
        attention: to write attention into.
    """

    def write(bag: _ScoredBag) -> None:
        with bag.folder:
            for slide in bag.slides:
                _write_attention(attention, slide, is_new=slide.record["slide_id"] not in records)
            for slide in bag.slides:
                folder.write(slide.record)

    for _ in map_in_threads(write, _scored_bags(scorer, settings, slides, records), WRITING_THREADS):
        pass


def _write_attention(attention: AttentionFolder, slide: _SlideScore, *, is_new: bool) -> None:
    if slide.group is None:
        attention.remove(slide.record["slide_id"])
    else:
        write_attention(attention, slide.group, slide.weight, slide.columns, is_new=is_new)


def _scored_bags(
    scorer: Scorer, settings: SlideSettings, slides: Sequence[Slide], records: Mapping[str, Record]
) -> Iterator[_ScoredBag]:
    """Score the bags that are not recorded as they are now."""
    # a file that changes after this is scored again by the next command
    versions = _source_versions(slides, records)
    bags = _group_by_bag(slides, scorer)
    for bag in track(bags, "predict", len(bags)):
        ids = sorted(slide.slide_id for slide in bag)
        wanted = [{"seen": versions[slide], "bag": ids, "settings": settings.digest} for slide in bag]
        stored = [records.get(slide.slide_id, {}) for slide in bag]
        if not all(
            record.get("status") == "ok" and made_of.items() <= record.items()
            for record, made_of in zip(stored, wanted, strict=True)
        ):
            yield _score_bag(scorer, settings, bag, wanted)


def _group_by_bag(slides: Sequence[Slide], scorer: Scorer) -> list[list[Slide]]:
    """The slides of each bag, in order of first appearance."""
    bags: dict[str, list[Slide]] = {}
    for slide in slides:
        bags.setdefault(slide.patient_id if scorer.by_patient else slide.slide_id, []).append(slide)
    return list(bags.values())


def _source_versions(slides: Sequence[Slide], records: Mapping[str, Record]) -> dict[Slide, list[object]]:
    """URI, patient, mpp, and the file's size and version where reachable, of each slide.

    As it was listed where that is what its record has seen; else the file is asked for, which may be one of a series.
    """
    listed = source_versions(slide.uri for slide in slides if slide.slide_id in records)

    def version(slide: Slide) -> list[object]:
        of_list = _record_version(slide, listed.get(slide.uri))
        is_recorded = slide.uri in listed and of_list == records.get(slide.slide_id, {}).get("seen")
        return of_list if is_recorded else _source_version(slide)

    return dict(zip(slides, map_in_threads(version, slides, storage.CONCURRENT_REQUESTS), strict=True))


def _source_version(slide: Slide) -> list[object]:
    """Version of a slide, as ``_source_versions``.

    A slide whose file cannot be reached is scored again.
    """
    try:
        stat = None if uri_problem(slide.uri) else source_stat(slide.uri)
    except (*storage.IO_ERRORS, SlideError):
        stat = None
    return _record_version(slide, stat and SourceVersion(slide.uri, *stat))


def _record_version(slide: Slide, version: SourceVersion | None) -> list[object]:
    of_file = [] if version is None else [version.size, version.version]
    return [slide.uri, slide.patient_id, slide.mpp, *of_file]


def _score_bag(
    scorer: Scorer, settings: SlideSettings, slides: list[Slide], made_of: list[dict[str, Any]]
) -> _ScoredBag:
    """Ingest and encode the slides of a bag, then predict all usable ones together.

    Args:
        scorer: of the run.
        settings: of ingestion and encoding.
        slides: of the bag.
        made_of: what the record of each tells of its making.
    """
    folder = tempfile.TemporaryDirectory()
    try:
        store = PatchStore(storage.join(folder.name, "store"))
        return _ScoredBag(list(_score_slides(scorer, settings, slides, made_of, store)), folder)
    except BaseException:
        folder.cleanup()
        raise


def _score_slides(
    scorer: Scorer, settings: SlideSettings, slides: list[Slide], made_of: list[dict[str, Any]], store: PatchStore
) -> Iterator[_SlideScore]:
    outcomes = [ingest_slide(slide, store, settings.ingest) for slide in slides]
    usable = [slide for slide, outcome in zip(slides, outcomes, strict=True) if outcome.status == "ok"]
    groups = {slide.slide_id: _encode_group(settings, store, scorer.device, slide.slide_id) for slide in usable}
    members, of_slide = _predict_bag(scorer, slides[0].patient_id, list(groups.values())) if groups else (None, {})
    for slide, outcome, making in zip(slides, outcomes, made_of, strict=True):
        group = groups.get(slide.slide_id)
        # the store, which is gone then, tells the file by the path from itself
        reason = outcome.reason and outcome.reason.replace(storage.relative(slide.uri, store.uri), slide.uri)
        record = {
            "slide_id": slide.slide_id, "patient_id": slide.patient_id, "uri": slide.uri, "status": outcome.status,
            "members": None if group is None else members, "patches": 0 if group is None else len(group),
            "reason": reason,
        }  # fmt: skip
        yield _SlideScore(record | making, group, *of_slide.get(slide.slide_id, (np.empty(0), {})))


def _encode_group(settings: SlideSettings, store: PatchStore, device: torch.device, slide_id: str) -> SlideGroup:
    if settings.encode is not None:
        encode_slide(store.uri, settings.encode, device.type, slide_id)
    return store.slide(slide_id)


def _predict_bag(
    scorer: Scorer, bag_id: str, groups: list[SlideGroup]
) -> tuple[list[list[float]], dict[str, tuple[np.ndarray, dict[str, np.ndarray]]]]:
    """Probabilities of a bag by each model; attention and further columns of its slides."""
    names, lengths = tuple(group.slide_id for group in groups), tuple(len(group) for group in groups)
    entry = BagEntry(bag_id, bag_id, 0, "test", names, lengths)
    bags = open_bags([entry], {group.slide_id: group for group in groups}, scorer.spec.train)
    prediction = predict_bags(scorer.models, bags, [0], scorer.device)[0]
    return prediction.members.tolist(), attention_of_slides(scorer, entry, bags[0], prediction)


def attention_of_slides(
    scorer: Scorer, entry: BagEntry, bag: Bag, prediction: BagPrediction
) -> dict[str, tuple[np.ndarray, dict[str, np.ndarray]]]:
    """Attention and further columns of the instances of each slide of a bag.

    Those that differ by class are of the predicted one.
    """
    predicted_class = scorer.predicted_class(prediction)
    label = prediction.likeliest if predicted_class is None else predicted_class
    of_bag = instance_columns(scorer.models, bag, label, with_leave_one_out=False)
    columns = {name: entry.by_slide(values) for name, values in of_bag.items()}
    return {
        slide_id: (weight, {name: values[slide_id] for name, values in columns.items()})
        for slide_id, weight in entry.by_slide(prediction.attention).items()
    }
