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
    tune_seed: int,
    level: str,
    bag: str,
    hidden: int,
    attention_hidden: int,
    dropout: float,
    weight_decay: float,
    epochs: int,
    patience: int,
    batch_size: int,
    precision: str,
    activation_mb: float,
    cache_mb: float,
    seed: int,
    split_seed: int,
    val_fraction: float,
    test_fraction: float,
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
        tune_seed: seed of the drawn learning rates.
        level: pool instance probabilities or instance embeddings.
        bag: a bag is a slide, or all slides of a patient.
        hidden: width of the instance embedding.
        attention_hidden: width of the attention network.
        dropout: on instance embeddings.
        weight_decay: of AdamW.
        epochs: most passes over the training bags.
        patience: stop after this many epochs that do no better on validation.
        batch_size: bags in one optimizer step.
        precision: of the arithmetic.
        activation_mb: memory for activations of one worker, MB; a larger bag is recomputed in chunks.
        cache_mb: instances one worker keeps in memory, MB.
        seed: of weights, bag order and dropout.
        split_seed: of the patient-level split.
        val_fraction: share of patients for model selection.
        test_fraction: share of patients kept for the final metrics.
        workers: trials at a time; 0 counts as 1.
        use_gpu: one GPU a trial.
        ray_address: local, rayjob, http(s)://host:8265 or host:port.
        cluster_profile: YAML file that describes the clusters of rayjob; empty: the defaults.

    Returns:
        The sweep folder, with best.json and splits.parquet.
    """
    settings = {**locals(), "poolings": tuple(poolings.split(","))}
    from milcore.cluster.launch import tune_with
    from milcore.config import LaunchConfig, SplitConfig, TrainConfig, TuneConfig, pick
    from milcore.storage import join
    from milcore.sweep import prepare_sweep

    sweep_uri = join(run_uri, "tune")
    config = pick(TuneConfig, {**settings, "train": pick(TrainConfig, settings)})
    prepare_sweep(store_uri, sweep_uri, config, pick(SplitConfig, settings), None)
    tune_with(sweep_uri, pick(LaunchConfig, settings))
    return sweep_uri
