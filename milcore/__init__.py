"""Attention-based deep multiple instance learning on whole-slide images.

Public names are imported when they are first used: ``import milcore`` costs nothing.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

# public name -> the module that defines it
_HOME = {
    "synthesise": "milcore.api",
    "ingest": "milcore.api",
    "import_cohort": "milcore.api",
    "encode": "milcore.api",
    "train": "milcore.api",
    "tune": "milcore.api",
    "evaluate": "milcore.api",
    "predict": "milcore.api",
    "doctor": "milcore.api",
    "AnnotationConfig": "milcore.config",
    "IngestConfig": "milcore.config",
    "ImportConfig": "milcore.config",
    "EncodeConfig": "milcore.config",
    "SplitConfig": "milcore.config",
    "TrainConfig": "milcore.config",
    "TuneConfig": "milcore.config",
    "EvaluateConfig": "milcore.config",
    "PredictConfig": "milcore.config",
    "LaunchConfig": "milcore.config",
    "MILError": "milcore.errors",
    "InputError": "milcore.errors",
    "DoctorReport": "milcore.cluster.doctor.finding",
    "IngestReport": "milcore.ingestion.report",
    "PatchStore": "milcore.store.store",
    "Bags": "milcore.mil.bags.bags",
    "MILModel": "milcore.mil.model",
    "POOLINGS": "milcore.mil.pooling.pooling",
    "Estimate": "milcore.metrics.classification",
    "Run": "milcore.training.run_folder",
    "Sweep": "milcore.training.sweep",
    "Evaluation": "milcore.evaluation.evaluation",
    "Predictions": "milcore.evaluation.predictions",
    "fit": "milcore.training.fit",
    "predict_bags": "milcore.mil.inference",
}


__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'milcore' has no attribute {name!r}; public names: {', '.join(sorted(_HOME))}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*_HOME, "__version__"])
