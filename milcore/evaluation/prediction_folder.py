"""Folder of predictions: its ``config.json``, the ids and records of its slides.

The record of a slide is ``slides/<id>.json``. A slide keeps its id, and the folder every slide predicted into it.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, ClassVar

from pydantic import Field

from milcore.cohort.manifest import Slide
from milcore.config import (
    AnnotationOrigin,
    AttentionFormat,
    EncoderRecord,
    FeatureName,
    FolderSpec,
    IngestConfig,
)
from milcore.errors import DamageError, InputError, StoreError
from milcore.runtime import storage
from milcore.runtime.digest import digest, with_own_digest, without_own_digest
from milcore.training.run_folder import claim_folder, config_uri

SLIDES = "slides"
STEM_CHARACTERS = 100
DIGEST_CHARACTERS = 8
NO_SETTINGS = {"schema_version", "milcore_version", "annotation_origin"}

Record = dict[str, Any]


class PredictionsSpec(FolderSpec):
    """The ``config.json`` of a folder of predictions.

    All that a prediction depends on beside the slide.
    """

    folders: ClassVar[tuple[str, ...]] = ("run",)
    run: str
    models_sha256: str
    default_mpp: float | None
    ingestion: IngestConfig | None = Field(None, description="none in the first schema")
    encoder: EncoderRecord | None = Field(None, description="none with patches, and in the first schema")
    annotation_origin: AnnotationOrigin = Field("bounds", description="of the GeoJSON and OME-TIFF of attention")

    @property
    def digest(self) -> str:
        """Sha256 of what predictions depend on, which each record carries.

        The models stand for the run.
        """
        return digest(self.model_dump(mode="json", exclude={*NO_SETTINGS, "run"}))

    @property
    def earlier_digest(self) -> str:
        """The digest of earlier versions, with the run's place at that time."""
        return digest(self.model_dump(mode="json", exclude=NO_SETTINGS))


class StorePredictionsSpec(FolderSpec):
    """The ``config.json`` of a folder of predictions of a store.

    All that a prediction depends on beside the instances.
    """

    folders: ClassVar[tuple[str, ...]] = ("run", "store")
    run: str
    store: str
    models_sha256: str
    features: FeatureName | None = Field(description="of the store; none with patches")
    encoder: EncoderRecord | None = Field(description="of the run's features; none with patches or imported features")
    encoder_id: str | None = Field(description="of the run's imported features: what made them")
    same_encoder: bool = Field(description="the user vouched that it made the store's features too")
    attention_formats: tuple[AttentionFormat, ...] = Field(description="file formats of each slide's attention")
    annotation_origin: AnnotationOrigin = Field(description="of the GeoJSON and OME-TIFF of attention")


def claim_predictions(uri: str, spec: PredictionsSpec | StorePredictionsSpec) -> None:
    """Write the ``config.json`` of a folder of predictions, or compare it.

    Raises:
        InputError: it holds predictions by other settings, or of slides where these are of a store, or the reverse.
    """
    try:
        stored = storage.read_json(config_uri(uri))
    except FileNotFoundError:
        stored = None
    if isinstance(stored, dict) and "models_sha256" in stored:
        of_store, is_store = "store" in stored, isinstance(spec, StorePredictionsSpec)
        if of_store != is_store:
            kinds = {True: "a store", False: "slides"}
            raise InputError(
                f"{uri}: expected a folder of predictions of {kinds[is_store]}, got one of {kinds[of_store]}; allowed: "
                "one kind in a folder; take another folder"
            )
    claim_folder(uri, spec)


class RecordFolder:
    """Records of the slides that were predicted into a folder.

    Args:
        uri: of the folder of predictions.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._known: dict[str, tuple[str, Record]] = {}

    def read(self) -> dict[str, Record]:
        """Record of every slide that was predicted into the folder, by id.

        One that was read or written here before is not read again where the storage's ETag says that it is the same.

        Raises:
            StoreError: a file there is no record.
        """
        versions = self._versions()
        changed = [uri for uri, version in versions.items() if self._known.get(uri, ("",))[0] != version]
        for uri, data in sorted(storage.read_all(changed).items()):
            self._known[uri] = _md5(data), _parse(uri, data)
        records = [self._known[uri][1] for uri in versions if uri in self._known]
        return {record["slide_id"]: _with_uri(record, storage.resolve(record["uri"], self.uri)) for record in records}

    def write(self, record: Record) -> None:
        """Write the record of a slide.

        A local file stands in it, and in the reason of a quarantine, as the path from the folder.
        """
        stored = _with_uri(record, storage.relative(record["uri"], self.uri))
        uri, data = _record_uri(self.uri, record["slide_id"]), storage.json_bytes(with_own_digest(stored))
        storage.write_bytes(uri, data)
        self._known[uri] = _md5(data), stored

    def _versions(self) -> dict[str, str]:
        """Version of each record's file, in order of their names."""
        try:
            stats = storage.folder_stats(storage.join(self.uri, SLIDES))
        except FileNotFoundError:
            return {}
        names = [name for name in stats if name.endswith(".json")]
        return {_record_uri(self.uri, name.removesuffix(".json")): stats[name].version for name in names}


def _md5(data: bytes) -> str:
    """The ETag that S3 gives an object.

    It gives another one where the object is encrypted by a key of the user.
    """
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def _with_uri(record: Record, uri: str) -> Record:
    """The record with its file, in the reason too, under another path."""
    reason = record["reason"] and record["reason"].replace(record["uri"], uri)
    return record | {"uri": uri, "reason": reason, "seen": [uri, *record["seen"][1:]]}


def _record_uri(out_uri: str, slide_id: str) -> str:
    return storage.join(out_uri, SLIDES, f"{slide_id}.json")


def _parse(uri: str, data: bytes) -> Record:
    try:
        record = without_own_digest(json.loads(data), uri)
        _, patient_id, _, *_ = record["seen"]
        is_of_name = uri.endswith(f"/{record['slide_id']}.json")
        is_record = is_of_name and isinstance(record["uri"], str) and isinstance(patient_id, str)
    except (ValueError, TypeError, KeyError):
        is_record = False
    if not is_record:
        raise StoreError(f"{uri}: expected a slide's record, got other data; remove it and predict the slide again")
    return record


def check_records(out_uri: str, slides: Sequence[Slide], records: Mapping[str, Record]) -> None:
    """Check that each slide of ``predictions.json`` has its record.

    Those that are predicted now need none.

    Raises:
        StoreError: one is lost.
    """
    uri = predictions_uri(out_uri)
    try:
        listed = {row["slide_id"] for row in storage.read_json(uri)["slides"]}
    except (FileNotFoundError, DamageError, LookupError, TypeError):
        return  # it is written anew
    lost = sorted(listed - {slide.slide_id for slide in slides} - records.keys())
    if lost:
        raise StoreError(
            f"{_record_uri(out_uri, lost[0])}: expected the record of a slide of {uri}, got no object; restore it, or "
            f"predict {', '.join(map(repr, lost[:5]))} again"
        )


def predictions_uri(out_uri: str) -> str:
    """``predictions.json``: a row per slide of the folder."""
    return storage.join(out_uri, "predictions.json")


def slides_of_files(uris: Sequence[str], records: Mapping[str, Record]) -> list[Slide]:
    """A slide for each file, in their order.

    A file named twice is one slide. One that has a record keeps its id. Another gets the stem of its name; where
    another file has that stem, in this call or among the records, the stem and a short digest of its URI.

    Args:
        uris: absolute.
        records: of the folder, by id.
    """
    known = {record["uri"]: recorded_slide(slide_id, record) for slide_id, record in records.items()}
    stems = {uri: _stem(uri) for uri in uris if uri not in known}
    count, taken = Counter(stems.values()), set(records)
    slides = dict(known)
    # sorted, so that no id depends on the order of the files
    for uri in sorted(stems):
        is_alone = count[stems[uri]] == 1 and stems[uri] not in taken
        slide_id = stems[uri] if is_alone else _with_digest(stems[uri], uri, taken)
        taken.add(slide_id)
        slides[uri] = _slide(slide_id, uri, slide_id, None)
    return [slides[uri] for uri in dict.fromkeys(uris)]


def _stem(uri: str) -> str:
    """Name of a file or folder without suffix, as an id.

    Characters that an id cannot hold become ``_``. A number is no suffix: folders of DICOM slides are
    named by UIDs.
    """
    path = PurePosixPath(uri)
    name = path.name if path.suffix[1:].isdecimal() else path.stem
    safe = re.sub(r"[^A-Za-z0-9._-]", "_", name).lstrip("._-")
    return safe[:STEM_CHARACTERS] or "slide"


def _with_digest(stem: str, uri: str, taken: set[str]) -> str:
    """Stem and digest of a URI, long enough for no other id."""
    sha256 = hashlib.sha256(uri.encode()).hexdigest()
    ids = (f"{stem}-{sha256[:length]}" for length in range(DIGEST_CHARACTERS, len(sha256) + 1))
    return next(slide_id for slide_id in ids if slide_id not in taken)


def recorded_slide(slide_id: str, record: Record) -> Slide:
    """The slide of a record."""
    _, patient_id, mpp, *_ = record["seen"]
    return _slide(slide_id, record["uri"], patient_id, mpp)


def _slide(slide_id: str, uri: str, patient_id: str, mpp: float | None) -> Slide:
    # Slide requires a label; prediction does not read it
    return Slide(slide_id, uri, label=0, patient_id=patient_id, site="", mpp=mpp, split=None, annotation=None)


def check_files(slides: Sequence[Slide], records: Mapping[str, Record]) -> None:
    """Check that no slide's id stands for another file in the folder.

    Raises:
        InputError: it does.
    """
    for slide in slides:
        uri = records.get(slide.slide_id, {}).get("uri", slide.uri)
        if uri != slide.uri:
            raise InputError(
                f"slide_id {slide.slide_id!r}: expected the file that it was predicted from, {uri}, got {slide.uri}; "
                "allowed: one file an id; take another id or another folder"
            )
