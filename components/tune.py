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
    search: str,
    objective_folds: int,
    level: str,
    bag: str,
    hidden: int,
    attention_hidden: int,
    dropout: float,
    weight_decay: float,
    schedule: str,
    warmup_epochs: float,
    clip_norm: float,
    class_balance: str,
    ema_decay: float,
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
        tune_seed: seed of what is drawn.
        search: other training settings to draw, parted by semicolons: NAME=A,B,C or NAME=LOW..HIGH[:log].
        objective_folds: score a trial by its mean over so many folds; 0: by the validation split.
        level: pool instance probabilities or instance embeddings.
        bag: a bag is a slide, or all slides of a patient.
        hidden: width of the instance embedding.
        attention_hidden: width of the attention network.
        dropout: on instance embeddings.
        weight_decay: of AdamW.
        schedule: the learning rate after warm-up: cosine or constant.
        warmup_epochs: epochs in which the learning rate rises to its peak.
        clip_norm: largest global gradient norm.
        class_balance: none, weighted (losses by inverse class frequency) or sampled (every class equally often).
        ema_decay: per step, of the moving average of weights that is validated and published; 0: none.
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
        workers: trials at a time; 0: as many as the cluster has room for.
        use_gpu: one GPU a trial.
        ray_address: local, rayjob, http(s)://host:8265 or host:port.
        cluster_profile: YAML file that describes the clusters of rayjob; empty: the defaults.

    Returns:
        The sweep folder, with best.json and splits.parquet.
    """
    drawn = tuple(axis for axis in search.split(";") if axis)
    settings = {**locals(), "poolings": tuple(poolings.split(",")), "search": drawn}
    from milcore.cluster.launch import tune_with
    from milcore.config import LaunchConfig, SplitConfig, TrainConfig, TuneConfig, pick
    from milcore.runtime.storage import join
    from milcore.training.sweep import prepare_sweep

    sweep_uri = join(run_uri, "tune")
    config = pick(TuneConfig, {**settings, "train": pick(TrainConfig, settings)})
    prepare_sweep(store_uri, sweep_uri, config, pick(SplitConfig, settings))
    tune_with(sweep_uri, pick(LaunchConfig, settings))
    return sweep_uri
