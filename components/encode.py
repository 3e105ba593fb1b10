"""Patches to features."""

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def encode(
    store_uri: str,
    outcomes: list[str],
    encoder: str,
    settings: str,
    workers: int,
    use_gpu: bool,
    ray_address: str,
    cluster_profile: str,
) -> str:
    """Compute features of every slide with a frozen encoder.

    First accounts for every slide of the cohort and writes its overview; fails when no slide is ok.

    Args:
        store_uri: the patch store.
        outcomes: the results of the ingest steps.
        encoder: NAME[@URI], torchscript:URI, onnx:URI, timm:NAME[@URI] or hf:NAME_OR_URI.
        settings: JSON of settings that are no parameters; those under encode count here.
        workers: Ray workers; 0 computes in the step.
        use_gpu: one GPU a worker.
        ray_address: local, rayjob, http(s)://host:8265 or host:port.
        cluster_profile: YAML file that describes the clusters of rayjob; empty: the defaults.

    Returns:
        The name of the features.
    """
    parameters = {**locals()}
    import json

    from milcore import api
    from milcore.config import PipelineSettings

    with api.pipeline_step("encode", store_uri):
        api.gather_ingestion(store_uri, [json.loads(outcome) for outcome in outcomes])
        configs = PipelineSettings(parameters, settings)
        return api.encode(store_uri, config=configs.encode, launch=configs.launch).name
