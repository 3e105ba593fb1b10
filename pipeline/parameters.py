"""The parameters of the pipelines: their groups and descriptions.

A setting is described by its config class.
"""

from collections.abc import Callable, Iterator

from milcore.config import Config, EncodeConfig, IngestConfig, LaunchConfig, TrainConfig, TuneConfig

# what a pipeline adds to the description of a config class
ADDENDA = {
    "default_mpp": "0: none",
    "bag": "here slide is patient with that target, too, but for settings that have bag slide under train",
}
# group -> parameter -> its description, or the config class that describes it
PARAMETERS: dict[str, dict[str, str | type[Config]]] = {
    "Cohort": {
        "manifest": "CSV or Parquet with slide_id, uri, label (of classes) and further columns, at a path or s3:// URI",
        "store_uri": "patch store to make or go on with",
        "run_uri": "run folder; the same one resumes",
        "positive": "class name that counts as positive; empty: the later by name",
        "partitions": "ingest steps that share the slides; one where ingest_workers are those of a job",
    },
    "Ingestion": {
        "mpp": IngestConfig,
        "patch_size": IngestConfig,
        "default_mpp": IngestConfig,
        "ingest_workers": "processes of each ingest step, 0: one; with ray_address rayjob or http(s):// Ray workers of "
        "one job that all slides are dealt to, 0: no job",
    },
    "Encoding": {
        "encoder": EncodeConfig,
        "encode_workers": "Ray workers of the encode step; 0 computes in the step",
        "features": "name of the features to train on",
    },
    "Training": {
        "poolings": TuneConfig,
        "learning_rate_min": TuneConfig,
        "learning_rate_max": TuneConfig,
        "trials": TuneConfig,
        "target": TrainConfig,
        "time": TrainConfig,
        "event": TrainConfig,
        "target_column": TrainConfig,
        "bag": TrainConfig,
        "epochs": TrainConfig,
        "baselines": "also train and show what the model has to beat",
        "settings": "every other setting, as JSON with a key per config (ingest, annotations, encode, split, train, "
        'tune), such as {"train": {"hidden": 256}, "encode": {"patches_per_batch": 32}}',
    },
    "Cluster": {
        "workers": "Ray workers of the run, and trials of the sweep at a time; 0: the run is trained in the step, the "
        "sweep has as many trials at a time as there is room for",
        "use_gpu": LaunchConfig,
        "ray_address": LaunchConfig,
        "cluster_profile": LaunchConfig,
        "step_cpus": "CPUs of each step that ingests, encodes, sweeps, trains or evaluates itself, such as 2; a step "
        "that only launches a job asks for 0.2",
        "step_memory": "memory of each of these steps, such as 8Gi; a step that only launches a job asks for 512Mi",
        "step_gpus": "GPUs of each step that encodes, sweeps or trains; give 1 with use_gpu and ray_address local",
    },
}


def described(about: str, names: list[str]) -> str:
    """The docstring of a pipeline function with these parameters, each under its group's name."""
    lines = dict(_lines())
    return "\n".join([about, "", "Args:", *(f"    {name}: {lines[name]}" for name in names)])


def _lines() -> Iterator[tuple[str, str]]:
    for group, parameters in PARAMETERS.items():
        for name, description in parameters.items():
            text = description if isinstance(description, str) else description.model_fields[name].description
            addendum = f"; {ADDENDA[name]}" if name in ADDENDA else ""
            yield name, f"{group}: {text}{addendum}."


def with_description(about: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a pipeline function its docstring: what it does, and each parameter's description."""

    def describe(function: Callable[..., None]) -> Callable[..., None]:
        code = function.__code__
        function.__doc__ = described(about, list(code.co_varnames[: code.co_argcount]))
        return function

    return describe
