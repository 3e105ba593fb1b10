"""Figures of a patch store or a run folder."""

from typing import Any

from milcore.errors import InputError
from milcore.runtime import storage
from milcore.store.store import PatchStore
from milcore.training.run_folder import Run


def describe(uri: str) -> dict[str, Any]:
    """Figures of the store or run at a URI.

    Raises:
        InputError: it is neither.
    """
    if storage.exists(storage.join(uri, "manifest.parquet")):
        return _describe_store(uri)
    if storage.exists(Run(uri).config_uri):
        return _describe_run(Run(uri))
    raise InputError(f"{uri} is neither a patch store (no manifest.parquet) nor a run folder (no config.json)")


def _describe_store(uri: str) -> dict[str, Any]:
    store = PatchStore(uri)
    manifest = store.manifest()
    slides = [store.slide(slide_id) for slide_id in store.slide_ids()]
    names = [name for slide in slides for name in slide.feature_names()]
    return {
        "kind": "patch store",
        "classes": list(manifest.classes),
        "slides": len(manifest.slides),
        "patients": len({slide.patient_id for slide in manifest.slides}),
        "ok": len(slides),
        "quarantined": store.quarantined(),
        "patches": sum(len(slide) for slide in slides),
        "features": {name: names.count(name) for name in sorted(set(names))},
    }


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
        "metrics": run.metrics(),
    }
