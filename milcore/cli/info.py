"""Figures of a store or run, and a check of all its bytes."""

from functools import partial
from typing import Any

from milcore.errors import InputError
from milcore.runtime import storage
from milcore.runtime.limits import cpus
from milcore.runtime.processes import map_in_processes
from milcore.runtime.progress import log_line, track
from milcore.store.slide_group import SlideGroup
from milcore.store.store import PatchStore
from milcore.store.verify import catalogue_damage, slide_damage
from milcore.training.run_folder import Run, read_metrics, run_damage

SLIDES_NAMED = 5


def describe(uri: str) -> dict[str, Any]:
    """Figures of the store or run at a URI.

    Raises:
        InputError: it is neither.
    """
    return _describe_store(uri) if _is_store(uri) else _describe_run(Run(uri))


def rebuild(uri: str) -> None:
    """Make the catalogue of a store anew from its slides.

    Raises:
        InputError: it is no store.
    """
    if not _is_store(uri):
        raise InputError(f"--rebuild: expected a patch store, got the run folder {uri}; allowed: a store; leave it out")
    slides = PatchStore(uri).rebuild_catalogue()
    log_line(f"catalogue of {uri}: {slides} slides")


def damage(uri: str) -> list[str]:
    """Lines on every damaged array of a store, or file of a run.

    Every byte is read, and the catalogue's rows are compared with the slides, which one process per core reads.

    Raises:
        InputError: it is neither.
    """
    if not _is_store(uri):
        return run_damage(Run(uri))
    PatchStore(uri).annotation_record()
    slide_ids = [slide.slide_id for slide in PatchStore(uri).manifest().slides]
    workers = min(cpus(), len(slide_ids))
    lines = map_in_processes(partial(slide_damage, uri), slide_ids, workers, _killed)
    of_slides = sorted(line for of_slide in track(lines, "verify", len(slide_ids)) for line in of_slide)
    return of_slides + catalogue_damage(uri)


def _killed(slide_id: str) -> list[str]:
    return [f"slide {slide_id!r}: its process was killed twice while reading it (out of memory?); run this again"]


def _is_store(uri: str) -> bool:
    """True for a store, False for a run.

    Raises:
        InputError: it is neither.
    """
    if storage.exists(storage.join(uri, "manifest.parquet")):
        return True
    if storage.exists(Run(uri).config_uri):
        return False
    raise InputError(f"{uri} is neither a patch store (no manifest.parquet) nor a run folder (no config.json)")


def _describe_store(uri: str) -> dict[str, Any]:
    store = PatchStore(uri)
    manifest = store.manifest()
    catalogue = store.catalogue([slide.slide_id for slide in manifest.slides])
    records = catalogue.records
    slides = catalogue.slides(catalogue.slide_ids())
    features = catalogue.map_slides(SlideGroup.feature_names, list(slides))
    names = [name for of_slide in features.values() for name in of_slide]
    if catalogue.open_ids:
        log_line(
            f"{len(catalogue.open_ids)} slide(s) of {uri} are being written, or a process that wrote them was killed: "
            "they are read from their own folders; where none is at work, the same command or --rebuild ends that"
        )
    _log_lacking(uri, "a complete record", [slide_id for slide_id, record in records.items() if record is None])
    for name in sorted(set(names)):
        _log_lacking(uri, f"features/{name}", [slide_id for slide_id in features if name not in features[slide_id]])
    return {
        "kind": "patch store",
        "classes": list(manifest.classes),
        "slides": len(manifest.slides),
        "patients": len({slide.patient_id for slide in manifest.slides}),
        "ok": len(slides),
        "quarantined": catalogue.quarantined(),
        "patches": sum(map(len, slides.values())),
        "features": {name: names.count(name) for name in sorted(set(names))},
    }


def _log_lacking(uri: str, what: str, slide_ids: list[str]) -> None:
    """Log which slides of a store lack something."""
    if slide_ids:
        more = " …" if len(slide_ids) > SLIDES_NAMED else ""
        named = ", ".join(slide_ids[:SLIDES_NAMED])
        log_line(f"{len(slide_ids)} slide(s) in the manifest of {uri} lack {what}: {named}{more}")


def _describe_run(run: Run) -> dict[str, Any]:
    spec = run.spec()
    split = run.splits().column("split").to_pylist()
    return {
        "kind": "run",
        "finished": run.is_finished(),
        "store_uri": spec.store_uri,
        "classes": list(spec.classes),
        "slides": {name: split.count(name) for name in sorted(set(split))},
        "train": spec.train.model_dump(mode="json"),
        "metrics": read_metrics(run),
    }
