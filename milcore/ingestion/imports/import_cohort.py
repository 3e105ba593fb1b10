"""Import of features or patches made elsewhere into a patch store.

Each slide ends ``ok`` or ``quarantined`` with its reason, and another run imports only slides that are missing or have
changed, as in ingestion. The import of a new slide cannot be repeated: ``milcore predict`` scores stores by a run on
such a store, not slides.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from milcore.cohort.manifest import Slide
from milcore.config import AnnotationConfig, ImportConfig, ImportFormat
from milcore.errors import InputError, SlideError, UnreachableSlideError
from milcore.ingestion.annotations import check_annotations
from milcore.ingestion.cohort import ingest_counts
from milcore.ingestion.cohort_writer import SlideStep, Versions, write_slides
from milcore.ingestion.imports.h5 import open_h5
from milcore.ingestion.imports.npz import open_bags, open_patches
from milcore.ingestion.imports.parquet import open_table
from milcore.ingestion.imports.pt import open_pt
from milcore.ingestion.imports.slide_image import SlideImage, read_slide_image, slide_version, with_scale
from milcore.ingestion.imports.source import Instances, Source
from milcore.ingestion.report import ImportReport
from milcore.ingestion.slide_result import (
    SlideOutcome,
    SlideResult,
    SlideTask,
    quarantine,
    record_outcome,
    row_with_source,
    skip,
    stored_slide,
)
from milcore.runtime import storage
from milcore.runtime.progress import track
from milcore.runtime.threads import map_in_threads
from milcore.store.catalogue import Catalogue
from milcore.store.feature_type import FeatureType, feature_type
from milcore.store.slide_group import SlideGroup
from milcore.store.slide_record import ImportOrigin, SlideRecord, SourceFile, record_problem
from milcore.store.slide_row import SlideRow
from milcore.store.store import PatchStore, StoredSlide

IMPORTS: dict[ImportFormat, Callable[[str, ImportConfig], Source]] = {
    "bags-npz": open_bags,
    "patches-npz": open_patches,
    "clam": open_h5,
    "trident": open_h5,
    "stamp": open_h5,
    "pt": open_pt,
    "parquet": open_table,
}
PATCHES = "patches"
THUMBNAIL_QUALITY = 90
KIND = "import"
# each holds the features of one slide in memory
SLIDES_AT_A_TIME = 8
# settings of the cohort, without effect on a slide's group
FREE_SETTINGS = {"labels", "positive"}


def import_source(source_uri: str, store_uri: str, config: ImportConfig) -> ImportReport:
    """Import every labelled slide of a source.

    Args:
        source_uri: a file, or a folder with a file per slide.
        store_uri: the store to write; where it has this import already, only missing or changed slides are imported.
        config: format of the source, and settings of the import.

    Raises:
        InputError: the source cannot be read at all, or the store has other slides.
    """
    source = IMPORTS[config.format](storage.absolute(source_uri), config)
    store, array = PatchStore(store_uri), _array_name(config)
    _claim(store, source, array)
    slides = source.manifest.slides

    def results(tasks: Sequence[SlideTask]) -> Iterator[SlideResult]:
        return map_in_threads(lambda task: _import_slide(task, source, store, config), tasks, SLIDES_AT_A_TIME)

    def is_current(slide: Slide, stored: StoredSlide, row: SlideRow, versions: Versions) -> bool:
        try:
            version = _listed_version(slide, source, versions)
        except SlideError:
            return False
        is_unchanged = version is not None and stored.source == version
        return is_unchanged and _is_usable(stored, _first_record(slide, source, config), config, store, row)

    step = SlideStep(KIND, lambda slide: filter(None, (source.file(slide), slide.uri)), is_current, results)
    outcomes = list(track(write_slides(store, slides, step), "import", len(slides)))
    outcomes = _quarantine_odd_widths(store, outcomes)
    store.join_catalogue()
    catalogue, counts = store.catalogue(), ingest_counts(outcomes)
    return ImportReport(
        store,
        counts["ok"],
        counts["quarantined"],
        counts["patches"],
        counts["skipped"],
        features=config.name if array != PATCHES else None,
        feature_types={} if array == PATCHES else _feature_types(catalogue, config.name, counts["ok"]),
        unlabelled=list(source.unlabelled),
        without_picture=_without_picture(catalogue),
    )


def _array_name(config: ImportConfig) -> str:
    """Array that an import of these settings writes: ``patches`` or ``features/<name>``."""
    return PATCHES if config.format == "patches-npz" else f"features/{config.name}"


def _claim(store: PatchStore, source: Source, array: str) -> None:
    """Write the cohort to a store that has no slides of another origin.

    Raises:
        InputError: the store has slides that were ingested, or imported as another array, or an annotation cannot be
            read.
    """
    earlier = store.records() if store.has_manifest() else {}
    others = {_origin(record) for record in earlier.values() if record is not None} - {array}
    if others:
        raise InputError(
            f"{store.uri}: expected no slides of another origin, got {', '.join(sorted(others))}, where this import "
            f"makes {array}; allowed: a new store, or one of an earlier import of the same; take another store"
        )
    store.write_annotation_record(check_annotations(source.manifest, AnnotationConfig()))
    store.update_manifest(source.manifest)


def _origin(record: SlideRecord) -> str:
    return "ingested slides" if record.import_origin is None else record.import_origin.array


def _import_slide(task: SlideTask, source: Source, store: PatchStore, config: ImportConfig) -> SlideResult:
    """Write one slide to the store, or quarantine it with its reason."""
    slide = task.slide
    record, version = _first_record(slide, source, config), None
    try:
        version = {**source.version(slide), "slide": slide_version(slide)}
        earlier = None if task.is_new else _usable(record, config, store)
        if earlier and earlier.source == version:
            return skip(store, earlier)
        instances = source.read(slide)
        record = replace(record, source=SourceFile(version["uri"], sha256=instances.sha256))
        if earlier and _is_of(earlier, record, version):
            result = SlideResult(record_outcome(earlier.record, skipped=True), None)
        else:
            row = _write(task, _storable(instances, source.feature_type), store, record, config)
            result = SlideResult(SlideOutcome(slide.slide_id, "ok", None, len(instances), skipped=False), row)
    except SlideError as error:
        record = replace(record, retry=isinstance(error, UnreachableSlideError))
        result = quarantine(store, record, str(error))
    if version is None:
        return result
    return result._replace(row=row_with_source(result, store, store.write_source(slide.slide_id, version)))


def _listed_version(slide: Slide, source: Source, versions: Versions) -> dict[str, object] | None:
    """Version of a slide's files as they were listed.

    None where the file of its instances is out of reach.

    Raises:
        SlideError: its instances are absent.
    """
    file, image = source.file(slide), versions.get(slide.uri)
    if file is not None and file not in versions:
        return None
    of_file = source.version(slide) if file is None else versions[file]._asdict()
    return {**of_file, "slide": image and image._asdict()}


def _is_of(earlier: StoredSlide, record: SlideRecord, version: Mapping[str, object]) -> bool:
    """True where the store has the content of the source.

    The slide's own file is the same too.
    """
    return earlier.record.source == record.source and (earlier.source or {}).get("slide") == version["slide"]


def _first_record(slide: Slide, source: Source, config: ImportConfig) -> SlideRecord:
    """Record of a slide before its file is read."""
    # without an encoder_id as earlier versions wrote them: their imports are not repeated
    left_out = FREE_SETTINGS if config.encoder_id is not None else FREE_SETTINGS | {"encoder_id"}
    settings = config.model_dump(mode="json", exclude=left_out)
    parameters = {**settings, "feature_type": source.feature_type, "slide_uri": slide.uri, "slide_mpp": slide.mpp}
    origin = ImportOrigin(config.format, _array_name(config))
    return SlideRecord(slide.slide_id, parameters=parameters, import_origin=origin)


def _usable(record: SlideRecord, config: ImportConfig, store: PatchStore) -> StoredSlide | None:
    """Record of an earlier import, if there is one and it is usable."""
    stored = stored_slide(store, record.slide_id)
    return stored if stored is not None and _is_usable(stored, record, config, store) else None


def _is_usable(
    stored: StoredSlide, record: SlideRecord, config: ImportConfig, store: PatchStore, row: SlideRow | None = None
) -> bool:
    """True for an earlier import with equal settings and its features.

    Not where a retry is due.

    Args:
        stored: of the earlier import.
        record: of this one, before its file is read.
        config: of this one.
        store: that has the slide.
        row: of it in the catalogue, which the features are to be those of; None: any.
    """
    earlier, array = stored.record, _array_name(config)
    is_other = (earlier.import_origin, earlier.parameters) != (record.import_origin, record.parameters)
    if earlier.retry or is_other:
        return False
    if earlier.status != "ok" or array == PATCHES:
        return True
    # not store.slide(): another import may be writing the group at this moment
    features = SlideGroup(store.group_uri(record.slide_id), earlier).stored_features(config.name)
    return features is not None and (row is None or row.has_array(array, features.metadata))


def _write(
    task: SlideTask, instances: Instances, store: PatchStore, record: SlideRecord, config: ImportConfig
) -> SlideRow:
    """Write a slide's group and its features; its row for the catalogue.

    The group is complete only with them, so that of two imports at once neither finds the other's half.

    Raises:
        SlideError: coords lie outside the slide, or it is larger than any.
    """
    slide, edge = task.slide, None if instances.patches is None else instances.patches.shape[1]
    record = _with_instances(record, instances)
    image = read_slide_image(slide, record.patch_size_level0)
    record = with_scale(record, slide, image)
    problem = record_problem(record)
    if problem is not None:
        raise SlideError(problem)
    _check_coords(instances, record)
    with store.writer(record, edge, "zstd", THUMBNAIL_QUALITY, is_new=task.is_new) as writer:
        for patch in () if instances.patches is None else instances.patches:
            writer.append_patch(np.broadcast_to(patch, (*patch.shape[:2], 3)))
        for name, values in instances.rows.items():
            writer.write_rows(name, values)
        if isinstance(image, SlideImage):
            writer.write_thumbnail(image.thumbnail)
        if instances.features is not None:
            stored = record.with_files(lambda uri: storage.relative(uri, store.uri))
            attrs = {"imported": config.format, "source": stored.to_attrs()["source"]}
            attrs |= {} if config.encoder_id is None else {"encoder_id": config.encoder_id}
            group = SlideGroup(store.group_uri(slide.slide_id), record)
            features = group.write_feature_array(config.name, instances.features, attrs, is_new=task.is_new)
            writer.keep_features(config.name, features)
    return writer.row


def _with_instances(record: SlideRecord, instances: Instances) -> SlideRecord:
    """Add the number, width, grid and classes of instances to a record."""
    if instances.grid is not None:
        edge, origin, size = instances.grid
        record = replace(record, patch_size_level0=edge, patch_size_level0_origin=origin, size_level0=size)
    return replace(
        record,
        patch_size=instances.patch_size,
        patches=len(instances),
        features_width=None if instances.features is None else instances.features.shape[1],
        instance_class_names=instances.class_names,
    )


def _check_coords(instances: Instances, record: SlideRecord) -> None:
    if "coords" not in instances.rows or record.size_level0 is None:
        return
    (right, bottom), (width, height) = instances.rows["coords"].max(axis=0).tolist(), record.size_level0
    if right >= width or bottom >= height:
        raise SlideError(
            f"a patch begins at ({right}, {bottom}), the slide measures {width} x {height} px: another slide?"
        )


def _quarantine_odd_widths(store: PatchStore, outcomes: list[SlideOutcome]) -> list[SlideOutcome]:
    """Quarantine slides whose features have another width than most slides have.

    The next run reads them again.
    """
    records = {name: record for name, record in store.records().items() if record and record.status == "ok"}
    widths = {name: record.features_width for name, record in records.items() if record.features_width is not None}
    most = Counter(widths.values()).most_common(1)
    reasons = {
        name: f"features {width} wide, most slides have {most[0][0]}"
        for name, width in widths.items()
        if width != most[0][0]
    }
    if not reasons:
        return outcomes
    rows, odd = store.row_writer(KIND, list(reasons)), {}
    for name, reason in reasons.items():
        of_import = {field: getattr(records[name], field) for field in ("parameters", "source", "import_origin")}
        odd[name], row = quarantine(store, SlideRecord(name, retry=True, **of_import), reason)
        if row is not None:
            rows.add(row)
    rows.close()
    return [odd.get(outcome.slide_id, outcome) for outcome in outcomes]


def _feature_types(catalogue: Catalogue, name: str, slide_ids: Sequence[str]) -> dict[str, int]:
    """Number of slides by the type in which their features are stored."""
    return dict(Counter(catalogue.slide(slide_id).feature_type(name) for slide_id in slide_ids))


def _without_picture(catalogue: Catalogue) -> dict[str, str]:
    reasons = {name: record.no_picture for name, record in catalogue.records.items() if record is not None}
    return {name: reason for name, reason in reasons.items() if reason is not None}


def _storable(instances: Instances, cohort_type: FeatureType | None) -> Instances:
    """Convert features to the type in which they are stored.

    Args:
        instances: of one slide.
        cohort_type: of all slides; None where the slide's own values decide.

    Raises:
        SlideError: there are no instances, a value is no number, or it is beyond the type.
    """
    if not len(instances):
        raise SlideError("no instances")
    features = instances.features
    if features is None:
        return instances
    bad = int((~np.isfinite(features)).any(axis=1).sum())
    if bad:
        raise SlideError(f"{bad} of {len(features)} rows of features hold NaN or infinity")
    largest, most = float(np.abs(features).max(initial=0.0)), float(np.finfo(np.float32).max)
    if largest > most:
        raise SlideError(f"features reach {largest:.3g}, float32 holds {most:.3g} at most; scale them down")
    return replace(instances, features=features.astype(cohort_type or feature_type(features)))
