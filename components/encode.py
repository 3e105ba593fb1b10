"""Patches to features."""

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def encode(
    store_uri: str,
    outcomes: str,
    encoder: str,
    patches_per_batch: int,
    workers: int,
    use_gpu: bool,
    ray_address: str,
    cluster_profile: str,
) -> str:
    """Compute the features of every slide that lacks them.

    Args:
        store_uri: the patch store.
        outcomes: of the slides, from the step before.
        encoder: the frozen encoder: NAME[@URI], torchscript:URI, onnx:URI, timm:NAME[@URI] or hf:NAME_OR_URI.
        patches_per_batch: patches in one forward pass of the encoder on a GPU; a CPU takes at most 16 on each core.
        workers: Ray workers; 0 computes in the step.
        use_gpu: one GPU a worker.
        ray_address: local, rayjob, http(s)://host:8265 or host:port.
        cluster_profile: YAML file that describes the clusters of rayjob; empty: the defaults.

    Returns:
        The name of the features.
    """
    settings = {**locals()}
    from milcore.cluster.launch import encode_with
    from milcore.config import EncodeConfig, LaunchConfig, pick
    from milcore.encoders.extraction.encode import named

    config = named(pick(EncodeConfig, settings))
    encode_with(store_uri, config, pick(LaunchConfig, settings))
    return str(config.name)
