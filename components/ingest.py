"""Slides to patches: a step for each partition."""

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def ingest(
    store_uri: str,
    partition: str,
    state: str,
    mpp: float,
    patch_size: int,
    default_mpp: float,
    settings: str,
    workers: int,
    ray_address: str,
    cluster_profile: str,
) -> str:
    """Cut the slides of a partition into patches, here or as a job.

    A bad slide is quarantined and never fails the step.

    Args:
        store_uri: the patch store, planned.
        partition: ``i/n``: the i-th of the n partitions the planning step wrote.
        state: digest of slides and store; an equal one lets Kubeflow reuse this step's result.
        mpp: target resolution in um/px.
        patch_size: patch edge in px at the target mpp.
        default_mpp: um/px assumed for a slide that carries none; 0: such a slide is quarantined.
        settings: JSON of settings that are no parameters; those under ingest count here.
        workers: with rayjob or http(s):// Ray workers of one job; else processes.
        ray_address: local, rayjob, http(s)://host:8265 or host:port.
        cluster_profile: YAML file that describes the clusters of rayjob; empty: the defaults.

    Returns:
        Numbers of slides that are ok, quarantined and skipped, and of patches, as JSON.
    """
    parameters = {**locals()}
    import json

    from milcore import api
    from milcore.config import PipelineSettings

    with api.pipeline_step(f"ingest {partition}", store_uri):
        configs = PipelineSettings(parameters, settings)
        return json.dumps(api.ingest_partition(store_uri, partition, configs.ingest, configs.launch))
