"""The step before the fan-out."""

from typing import NamedTuple

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def plan(
    manifest: str,
    store_uri: str,
    partitions: int,
    positive: str,
    mpp: float,
    patch_size: int,
    default_mpp: float,
    ingest_workers: int,
    encoder: str,
    encode_workers: int,
    poolings: str,
    learning_rate_min: float,
    learning_rate_max: float,
    trials: int,
    target: str,
    time: str,
    event: str,
    target_column: str,
    bag: str,
    epochs: int,
    workers: int,
    use_gpu: bool,
    ray_address: str,
    cluster_profile: str,
    settings: str,
    step_cpus: str,
    step_memory: str,
    step_gpus: str,
) -> NamedTuple(  # type: ignore[valid-type]
    "Plan",
    [
        ("Output", list[str]),
        ("state", str),
        ("ingest_cpu_request", str),
        ("ingest_cpu_limit", str),
        ("ingest_memory_request", str),
        ("ingest_memory_limit", str),
        ("ingest_gpus", str),
        ("encode_cpu_request", str),
        ("encode_cpu_limit", str),
        ("encode_memory_request", str),
        ("encode_memory_limit", str),
        ("encode_gpus", str),
        ("tune_cpu_request", str),
        ("tune_cpu_limit", str),
        ("tune_memory_request", str),
        ("tune_memory_limit", str),
        ("tune_gpus", str),
        ("train_cpu_request", str),
        ("train_cpu_limit", str),
        ("train_memory_request", str),
        ("train_memory_limit", str),
        ("train_gpus", str),
    ],
):
    """Check manifest, settings and jobs, divide the cohort, and size the steps to come.

    Args:
        manifest: CSV or Parquet with slide_id, uri, label (for classification) and further columns.
        store_uri: the patch store.
        partitions: how many ingest steps share the slides; one where a job ingests them.
        positive: class name that counts as positive; empty: the later by name.
        mpp: target resolution in um/px; like all that follows, checked here for the steps to come.
        patch_size: patch edge in px at the target mpp.
        default_mpp: um/px assumed for a slide that carries none; 0: such a slide is quarantined.
        ingest_workers: with rayjob or http(s):// Ray workers of the job that ingests; 0: no job.
        encoder: the frozen encoder.
        encode_workers: Ray workers of the encode step; 0 computes in the step.
        poolings: names parted by commas.
        learning_rate_min: lower end of the log-uniform range.
        learning_rate_max: upper end of the log-uniform range.
        trials: trials of the sweep.
        target: classification, survival_cox, survival_hazard or regression.
        time: manifest column of the time to event or censoring; empty: none, for other targets.
        event: manifest column of events, 1, or censoring, 0; empty likewise.
        target_column: manifest column of the number that regression predicts; empty likewise.
        bag: a bag is a slide, or all slides of a patient.
        epochs: most passes over the training bags.
        workers: Ray workers.
        use_gpu: one GPU a worker.
        ray_address: local, rayjob, http(s)://host:8265 or host:port.
        cluster_profile: YAML file that describes the clusters of rayjob; empty: the defaults.
        settings: JSON of settings that are no parameters, a key per config.
        step_cpus: CPUs of a step that computes; one that only launches a job is small.
        step_memory: memory of a step that computes.
        step_gpus: GPUs of a step that computes.

    Returns:
        The partitions as i/n; a digest of slides and patches, a new one while anything is missing and for a job; and
        requests and limits of the steps to come.
    """
    parameters = {**locals()}
    from components.sizes import job_launches, step_launch, step_sizes
    from milcore import api

    with api.pipeline_step("plan", store_uri):
        configs = api.check_settings(parameters, settings)
        api.check_launches(job_launches(parameters))
        launch = step_launch("ingest", parameters)
        train, notes = configs.train, configs.annotations
        planned = api.plan_pipeline(
            manifest, store_uri, positive or None, partitions, annotations=notes, launch=launch, train=train
        )
        return (*planned, *step_sizes(parameters))
