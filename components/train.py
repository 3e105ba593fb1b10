"""The training run."""

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def train(
    store_uri: str,
    run_uri: str,
    sweep_uri: str,
    workers: int,
    use_gpu: bool,
    ray_address: str,
    cluster_profile: str,
    model: dsl.Output[dsl.Model],
) -> str:
    """Train the settings that the sweep chose, on the sweep's split.

    Args:
        store_uri: the patch store.
        run_uri: the run folder; the same one resumes.
        sweep_uri: the sweep folder.
        workers: Ray Train workers; 0 trains in the step.
        use_gpu: one GPU a worker (NCCL), else CPU (gloo).
        ray_address: local, rayjob, http(s)://host:8265 or host:port.
        cluster_profile: YAML file that describes the clusters of rayjob; empty: the defaults.
        model: the published weights, by reference.

    Returns:
        Digest of the run as it stands; a new one while its evaluation is missing.
    """
    parameters = {**locals()}
    from milcore import api
    from milcore.config import PipelineSettings

    with api.pipeline_step("train", run_uri):
        launch = PipelineSettings(parameters, "").launch
        settings = api.train(store_uri, run_uri, sweep=sweep_uri, launch=launch).spec().train
        model.metadata.update(
            uri=api.download_model(run_uri, model.path), pooling=settings.pooling, level=settings.level
        )
        return api.run_state(run_uri)
