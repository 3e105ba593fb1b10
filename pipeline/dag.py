"""The pipeline: plan, ingest fanned out over shards, gather, encode, tune, train with the best settings, evaluate.

A parameter bears the name of its setting and reads its default from the config class. Steps keep their results at URIs
and do only what is missing there. Kubeflow's cache knows arguments, not what lies in storage: so the steps it may reuse
take a digest of all they read and write, from a step that is never cached; those that launch Ray never are.
"""

from kfp import dsl

from components.encode import encode
from components.evaluate import evaluate
from components.ingest import gather, ingest
from components.plan import plan, survey
from components.train import train
from components.tune import tune
from milcore.config import EncodeConfig, IngestConfig, LaunchConfig, SplitConfig, TrainConfig, TuneConfig
from pipeline.steps import ends_with_finish, launcher, sized, step

INGEST = IngestConfig()
ENCODE = EncodeConfig()
SPLIT = SplitConfig()
TRAIN = TrainConfig()
TUNE = TuneConfig()
LAUNCH = LaunchConfig()
SHARDS = 4
NAME = "attention-mil"
DISPLAY_NAME = "Attention MIL on whole-slide images"


@dsl.pipeline(name=NAME, display_name=DISPLAY_NAME)
@ends_with_finish
def attention_mil(
    manifest: str,
    store_uri: str,
    run_uri: str,
    positive: str = "",
    shards: int = SHARDS,
    mpp: float = INGEST.mpp,
    patch_size: int = INGEST.patch_size,
    stride: int = INGEST.stride,
    border: str = INGEST.border,
    default_mpp: float = INGEST.default_mpp or 0.0,
    reader: str = INGEST.reader,
    codec: str = INGEST.codec,
    jpeg_quality: int = INGEST.jpeg_quality,
    min_tissue: float = INGEST.min_tissue,
    max_unreadable: int = INGEST.max_unreadable,
    stain_normalisation: str = INGEST.stain_normalisation,
    ingest_workers: int = 1,
    encoder: str = ENCODE.encoder,
    patches_per_batch: int = ENCODE.patches_per_batch,
    encode_workers: int = 0,
    poolings: str = ",".join(TUNE.poolings),
    learning_rate_min: float = TUNE.learning_rate_min,
    learning_rate_max: float = TUNE.learning_rate_max,
    trials: int = TUNE.trials,
    tune_seed: int = TUNE.tune_seed,
    search: str = ";".join(TUNE.search),
    objective_folds: int = TUNE.objective_folds,
    level: str = TRAIN.level,
    bag: str = TRAIN.bag,
    hidden: int = TRAIN.hidden,
    attention_hidden: int = TRAIN.attention_hidden,
    dropout: float = TRAIN.dropout,
    weight_decay: float = TRAIN.weight_decay,
    schedule: str = TRAIN.schedule,
    warmup_epochs: float = TRAIN.warmup_epochs,
    clip_norm: float = TRAIN.clip_norm,
    class_balance: str = TRAIN.class_balance,
    ema_decay: float = TRAIN.ema_decay,
    epochs: int = TRAIN.epochs,
    patience: int = TRAIN.patience,
    batch_size: int = TRAIN.batch_size,
    precision: str = TRAIN.precision,
    activation_mb: float = TRAIN.activation_mb,
    cache_mb: float = TRAIN.cache_mb,
    seed: int = TRAIN.seed,
    split_seed: int = SPLIT.split_seed,
    val_fraction: float = SPLIT.val_fraction,
    test_fraction: float = SPLIT.test_fraction,
    baselines: bool = True,
    workers: int = 2,
    use_gpu: bool = LAUNCH.use_gpu,
    ray_address: str = LAUNCH.ray_address,
    cluster_profile: str = LAUNCH.cluster_profile,
    step_cpus: str = "2",
    step_memory: str = "8Gi",
    step_gpus: str = "0",
) -> None:
    """From slides and slide-level labels to a model, metrics and attention maps. Research use only.

    Args:
        manifest: CSV or Parquet with slide_id, uri, label and optional columns, at a path or s3:// URI.
        store_uri: patch store to make or go on with.
        run_uri: run folder; the same one resumes.
        positive: class name that counts as positive; empty: the later by name.
        shards: ingest steps that share the slides.
        mpp: target resolution in um/px.
        patch_size: patch edge in px at the target mpp.
        stride: px at the target mpp from patch to patch; 0: patch_size, edge to edge.
        border: patches that reach over the slide's right or lower edge: drop, or pad with white.
        default_mpp: um/px assumed for a slide that carries none; 0: such a slide is quarantined.
        reader: what opens slides: auto, tiff, openslide or flat.
        codec: how a patch is stored: jpeg, zstd (lossless), none, or passthrough (the slide's own JPEG tiles).
        jpeg_quality: 1 to 100.
        min_tissue: smallest share of a tile's area that must be tissue.
        max_unreadable: unreadable tiles under tissue that a slide may have.
        stain_normalisation: none, or macenko, which brings every H&E slide to one reference.
        ingest_workers: processes of each ingest step.
        encoder: the frozen encoder: NAME[@URI], torchscript:URI, onnx:URI, timm:NAME[@URI] or hf:NAME_OR_URI.
        patches_per_batch: patches in one forward pass of the encoder on a GPU; a CPU takes at most 16 on each core.
        encode_workers: Ray workers of the encode step; 0 computes in the step.
        poolings: poolings to try, parted by commas.
        learning_rate_min: lower end of the log-uniform range.
        learning_rate_max: upper end of the log-uniform range.
        trials: trials of the sweep.
        tune_seed: seed of what is drawn.
        search: other training settings to draw, parted by semicolons: NAME=A,B,C or NAME=LOW..HIGH[:log].
        objective_folds: score a trial by its mean over so many folds; 0: by the validation split.
        level: pool instance probabilities (instance) or embeddings (embedding).
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
        batch_size: bags in one optimizer step, over all workers together.
        precision: fp32, bf16 or fp64.
        activation_mb: memory for activations of one worker, MB; a larger bag is recomputed in chunks.
        cache_mb: instances one worker keeps in memory, MB.
        seed: of weights, bag order and dropout.
        split_seed: of the patient-level split.
        val_fraction: share of patients for model selection.
        test_fraction: share of patients kept for the final metrics.
        baselines: also train and show what the model has to beat.
        workers: trials at a time, and Ray Train workers.
        use_gpu: one GPU a worker.
        ray_address: local, rayjob (a cluster made for the step), http(s)://host:8265 (a standing one) or host:port.
        cluster_profile: YAML file that describes the clusters of rayjob; empty: the defaults.
        step_cpus: CPUs of each step that reads slides or computes.
        step_memory: memory of each such step.
        step_gpus: GPUs of the steps that encode, tune and train, for ray_address local with use_gpu.
    """
    planned = step(plan(manifest=manifest, store_uri=store_uri, shards=shards, positive=positive), retried=False)
    surveyed = step(survey(store_uri=store_uri)).after(planned)
    with dsl.ParallelFor(planned.output) as shard:
        part = step(
            ingest(
                store_uri=store_uri,
                shard=shard,
                state=surveyed.output,
                mpp=mpp,
                patch_size=patch_size,
                stride=stride,
                border=border,
                default_mpp=default_mpp,
                reader=reader,
                codec=codec,
                jpeg_quality=jpeg_quality,
                min_tissue=min_tissue,
                max_unreadable=max_unreadable,
                stain_normalisation=stain_normalisation,
                workers=ingest_workers,
            ),
            cached=True,
        )
        sized(part, step_cpus, step_memory)
    gathered = step(gather(store_uri=store_uri, outcomes=dsl.Collected(part.output)), retried=False)
    encoded = launcher(
        encode(
            store_uri=store_uri,
            outcomes=gathered.output,
            encoder=encoder,
            patches_per_batch=patches_per_batch,
            workers=encode_workers,
            use_gpu=use_gpu,
            ray_address=ray_address,
            cluster_profile=cluster_profile,
        )
    )
    tuned = launcher(
        tune(
            store_uri=store_uri,
            run_uri=run_uri,
            features=encoded.output,
            poolings=poolings,
            learning_rate_min=learning_rate_min,
            learning_rate_max=learning_rate_max,
            trials=trials,
            tune_seed=tune_seed,
            search=search,
            objective_folds=objective_folds,
            level=level,
            bag=bag,
            hidden=hidden,
            attention_hidden=attention_hidden,
            dropout=dropout,
            weight_decay=weight_decay,
            schedule=schedule,
            warmup_epochs=warmup_epochs,
            clip_norm=clip_norm,
            class_balance=class_balance,
            ema_decay=ema_decay,
            epochs=epochs,
            patience=patience,
            batch_size=batch_size,
            precision=precision,
            activation_mb=activation_mb,
            cache_mb=cache_mb,
            seed=seed,
            split_seed=split_seed,
            val_fraction=val_fraction,
            test_fraction=test_fraction,
            workers=workers,
            use_gpu=use_gpu,
            ray_address=ray_address,
            cluster_profile=cluster_profile,
        )
    )
    trained = launcher(
        train(
            store_uri=store_uri,
            run_uri=run_uri,
            sweep_uri=tuned.output,
            workers=workers,
            use_gpu=use_gpu,
            ray_address=ray_address,
            cluster_profile=cluster_profile,
        )
    )
    for task in (encoded, tuned, trained):
        sized(task, step_cpus, step_memory, step_gpus)
    evaluated = evaluate(run_uri=run_uri, sweep_uri=tuned.output, baselines=baselines, state=trained.outputs["Output"])
    sized(step(evaluated, cached=True), step_cpus, step_memory)
