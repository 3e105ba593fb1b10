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
        Digest of the run as it stands; one never seen before while its evaluation is missing.
    """
    settings = {**locals()}
    from milcore.cluster.launch import train_with
    from milcore.config import LaunchConfig, SplitConfig, pick
    from milcore.runtime.storage import download, join
    from milcore.training.run import prepare_run
    from milcore.training.run_folder import MODEL, SPLITS, run_state
    from milcore.training.sweep import read_best

    spec = prepare_run(store_uri, run_uri, read_best(sweep_uri), SplitConfig(splits=join(sweep_uri, SPLITS)))
    train_with(run_uri, pick(LaunchConfig, settings))
    download(join(run_uri, MODEL), model.path)
    model.metadata.update(uri=join(run_uri, MODEL), pooling=spec.train.pooling, level=spec.train.level)
    return run_state(run_uri)
