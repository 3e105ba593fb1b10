"""The sweep."""

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def tune(
    store_uri: str,
    run_uri: str,
    features: str,
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
    settings: str,
    workers: int,
    use_gpu: bool,
    ray_address: str,
    cluster_profile: str,
) -> str:
    """Sweep pooling and learning rate on validation.

    Args:
        store_uri: the patch store.
        run_uri: the run folder; the sweep goes below it.
        features: name of the features to train on.
        poolings: names parted by commas.
        learning_rate_min: lower end of the log-uniform range.
        learning_rate_max: upper end of the log-uniform range.
        trials: trials in all.
        target: classification, survival_cox, survival_hazard or regression.
        time: manifest column of the time to event or censoring; empty: none, for other targets.
        event: manifest column of events, 1, or censoring, 0; empty likewise.
        target_column: manifest column of the number that regression predicts; empty likewise.
        bag: a bag is a slide, or all slides of a patient.
        epochs: most passes over the training bags.
        settings: JSON of settings that are no parameters; those under split, train and tune count here.
        workers: trials at a time; 0: as many as the cluster has room for.
        use_gpu: one GPU a trial.
        ray_address: local, rayjob, http(s)://host:8265 or host:port.
        cluster_profile: YAML file that describes the clusters of rayjob; empty: the defaults.

    Returns:
        The sweep folder, with best.json and splits.parquet.
    """
    parameters = {**locals()}
    from milcore import api

    with api.pipeline_step("tune", run_uri):
        configs = api.check_settings(parameters, settings)
        out_uri = api.sweep_uri(run_uri)
        api.tune(store_uri, out_uri, config=configs.tune, split=configs.split, launch=configs.launch)
        return out_uri
