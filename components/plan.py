"""The step before the fan-out."""

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
    poolings: str,
    learning_rate_min: float,
    learning_rate_max: float,
    trials: int,
    bag: str,
    epochs: int,
    workers: int,
    use_gpu: bool,
    ray_address: str,
    cluster_profile: str,
    settings: str,
) -> list[str]:
    """Check manifest and settings, and divide the cohort by the sizes of its slides.

    Args:
        manifest: CSV or Parquet with slide_id, uri, label and optional columns.
        store_uri: the patch store.
        partitions: how many ingest steps share the slides; one where a job ingests them.
        positive: class name that counts as positive; empty: the later by name.
        mpp: target resolution in um/px; like all that follows, checked here for the steps to come.
        patch_size: patch edge in px at the target mpp.
        default_mpp: um/px assumed for a slide that carries none; 0: such a slide is quarantined.
        ingest_workers: with rayjob or http(s):// Ray workers of the job that ingests; 0: no job.
        encoder: the frozen encoder.
        poolings: names parted by commas.
        learning_rate_min: lower end of the log-uniform range.
        learning_rate_max: upper end of the log-uniform range.
        trials: trials of the sweep.
        bag: a bag is a slide, or all slides of a patient.
        epochs: most passes over the training bags.
        workers: Ray workers.
        use_gpu: one GPU a worker.
        ray_address: local, rayjob, http(s)://host:8265 or host:port.
        cluster_profile: YAML file that describes the clusters of rayjob; empty: the defaults.
        settings: JSON of settings that are no parameters, a key per config.

    Returns:
        The partitions as i/n.
    """
    parameters = {**locals()}
    from milcore import api
    from milcore.config import PipelineSettings

    with api.one_line_errors():
        annotations = api.check_settings(parameters, settings).annotations
        launch = PipelineSettings({**parameters, "workers": ingest_workers}, "").launch
        return api.plan_ingestion(
            manifest, store_uri, positive or None, partitions, annotations=annotations, launch=launch
        )


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def survey(store_uri: str, workers: int, ray_address: str) -> str:
    """Digest the slides and patches in storage.

    With it Kubeflow reuses results only where they still hold.

    Args:
        store_uri: the patch store, planned.
        workers: with rayjob or http(s):// Ray workers of the job that ingests; 0: no job.
        ray_address: local, rayjob, http(s)://host:8265 or host:port.

    Returns:
        Digest of the slides and of the patches made of them; a new one while anything is missing, and for a job.
    """
    parameters = {**locals()}
    from milcore import api
    from milcore.config import PipelineSettings

    with api.one_line_errors():
        return api.store_state(store_uri, PipelineSettings(parameters, "").launch)
