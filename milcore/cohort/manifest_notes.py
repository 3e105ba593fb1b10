"""Notes on a manifest: what is no error, but seldom meant."""

import posixpath
from collections.abc import Iterable, Iterator

from milcore.cohort.label_changes import changes_text
from milcore.cohort.labels import BINARY_CLASSES
from milcore.cohort.manifest import Manifest, Slide
from milcore.cohort.table import spelling_variants


def manifest_notes(manifest: Manifest) -> list[str]:
    """Lines for the user who ingests or imports a manifest.

    They name the lack of labels, the positive class, names that are nearly the same, one file under several ids, and
    patients with slides of several classes.
    """
    return [
        *_no_labels(manifest),
        *_positive_class(manifest),
        *_spellings(manifest),
        *_files(manifest),
        *_patients(manifest),
    ]


def lost_columns_note(before: Manifest, after: Manifest) -> str | None:
    """Line that names columns of a store's manifest that another lacks; None without any."""
    kept = set(_columns(after))
    lost = [name for name in _columns(before) if name not in kept]
    if not lost:
        return None
    return (
        f"warning: manifest: column(s) {', '.join(lost)} of the store's are not in this one, and are dropped; add them "
        "and ingest or import again to have them back"
    )


def _columns(manifest: Manifest) -> list[str]:
    """Columns of a manifest; of those of slides the ones with a value."""
    slides = manifest.slides
    of_slides = {name: any(getattr(slide, name) for slide in slides) for name in ("site", "mpp", "split", "annotation")}
    patients = any(slide.patient_id != slide.slide_id for slide in slides)
    is_there = {"label": bool(manifest.classes), "patient_id": patients, **of_slides}
    return [*(name for name in is_there if is_there[name]), *manifest.columns]


def _no_labels(manifest: Manifest) -> Iterator[str]:
    if not manifest.classes:
        others = ", ".join(manifest.columns) or "none"
        yield f"no column label, which classification needs; further columns: {others}"


def _positive_class(manifest: Manifest) -> Iterator[str]:
    if len(manifest.classes) == 2 and manifest.classes != BINARY_CLASSES:
        negative, positive = manifest.classes
        yield f"label: {positive!r} is the positive class, {negative!r} the negative one; --positive takes the other"


def _spellings(manifest: Manifest) -> Iterator[str]:
    slides = manifest.slides
    named: dict[str, Iterable[str]] = {
        "slide_id": [slide.slide_id for slide in slides],
        "label": manifest.classes,
        "patient_id": [slide.patient_id for slide in slides if slide.patient_id != slide.slide_id],
        "site": [slide.site for slide in slides],
    }
    for column, names in named.items():
        pairs = [f"{one!r} and {other!r}" for one, other in spelling_variants(names)]
        if pairs:
            yield (
                f"warning: {column}: counted apart, though they differ in case, spaces or leading zeros alone: "
                f"{changes_text(pairs)}"
            )


def _files(manifest: Manifest) -> Iterator[str]:
    of_file: dict[str, list[Slide]] = {}
    for slide in manifest.slides:
        if slide.uri:
            of_file.setdefault(slide.uri, []).append(slide)
    shared = [
        f"{posixpath.basename(uri)} is " + " and ".join(_with_class(slide, manifest) for slide in slides)
        for uri, slides in of_file.items()
        if len(slides) > 1
    ]
    if shared:
        yield f"warning: uri: one file under several ids: {changes_text(shared)}"


def _with_class(slide: Slide, manifest: Manifest) -> str:
    return f"{slide.slide_id} ({manifest.class_of(slide)})" if manifest.classes else slide.slide_id


def _patients(manifest: Manifest) -> Iterator[str]:
    labels_of: dict[str, set[int]] = {}
    for slide in manifest.slides:
        labels_of.setdefault(slide.patient_id, set()).add(slide.label)
    patients = [
        f"{patient} ({', '.join(manifest.classes[label] for label in sorted(labels))})"
        for patient, labels in labels_of.items()
        if len(labels) > 1
    ]
    if patients:
        yield (
            f"warning: label: {len(patients)} patient(s) with slides of several classes: {changes_text(patients)}; "
            "figures of patients take the highest, and a bag is a slide, not a patient"
        )
