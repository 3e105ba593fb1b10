"""The pipeline from slides to report.

Plan, ingest fanned out over partitions, encode, tune, train with the best settings, evaluate.

A parameter bears the name of its setting and reads its default from the config class; ``settings`` takes the settings
that are no parameters. Steps keep their results at URIs and do only what is missing there. Kubeflow's cache knows
arguments, not storage: so the steps it may reuse take a digest of all they read and write, from a step that is never
cached; those that launch Ray never are, for where ingestion does, the digest is a new one each time.
"""

from kfp import dsl

from components.encode import encode
from components.evaluate import evaluate
from components.ingest import ingest
from components.plan import plan
from components.sizes import SMALL, Size
from components.train import train
from components.tune import tune
from milcore.config import EncodeConfig, IngestConfig, LaunchConfig, TrainConfig, TuneConfig, parameter_default
from pipeline.parameters import with_description
from pipeline.steps import ends_with_finish, launcher, pipeline, pods_at_a_time, size_from, step

INGEST = IngestConfig()
ENCODE = EncodeConfig()
TRAIN = TrainConfig()
TUNE = TuneConfig()
LAUNCH = LaunchConfig()
PARTITIONS = 4
NAME = "attention-mil"
DISPLAY_NAME = "Attention MIL on whole-slide images"
ABOUT = "From slides and slide-level labels to a model, metrics and attention maps. Research use only."


@pipeline(name=NAME, display_name=DISPLAY_NAME)
@ends_with_finish
@with_description(ABOUT)
def attention_mil(  # noqa: D103 - its docstring comes from the table of parameters
    manifest: str,
    store_uri: str,
    run_uri: str,
    positive: str = "",
    partitions: int = PARTITIONS,
    mpp: float = INGEST.mpp,
    patch_size: int = INGEST.patch_size,
    default_mpp: float = parameter_default(IngestConfig, "default_mpp"),
    ingest_workers: int = 0,
    encoder: str = ENCODE.encoder,
    encode_workers: int = 0,
    poolings: str = parameter_default(TuneConfig, "poolings"),
    learning_rate_min: float = TUNE.learning_rate_min,
    learning_rate_max: float = TUNE.learning_rate_max,
    trials: int = TUNE.trials,
    target: str = TRAIN.target,
    time: str = parameter_default(TrainConfig, "time"),
    event: str = parameter_default(TrainConfig, "event"),
    target_column: str = parameter_default(TrainConfig, "target_column"),
    bag: str = TRAIN.bag,
    epochs: int = TRAIN.epochs,
    baselines: bool = True,
    settings: str = "",
    workers: int = 2,
    use_gpu: bool = LAUNCH.use_gpu,
    ray_address: str = LAUNCH.ray_address,
    cluster_profile: str = LAUNCH.cluster_profile,
    step_cpus: str = "2",
    step_memory: str = "8Gi",
    step_gpus: str = "0",
) -> None:
    checked = plan(
        manifest=manifest,
        store_uri=store_uri,
        partitions=partitions,
        positive=positive,
        mpp=mpp,
        patch_size=patch_size,
        default_mpp=default_mpp,
        ingest_workers=ingest_workers,
        encoder=encoder,
        encode_workers=encode_workers,
        poolings=poolings,
        learning_rate_min=learning_rate_min,
        learning_rate_max=learning_rate_max,
        trials=trials,
        target=target,
        time=time,
        event=event,
        target_column=target_column,
        bag=bag,
        epochs=epochs,
        workers=workers,
        use_gpu=use_gpu,
        ray_address=ray_address,
        cluster_profile=cluster_profile,
        settings=settings,
        step_cpus=step_cpus,
        step_memory=step_memory,
        step_gpus=step_gpus,
    )
    planned = launcher(checked, SMALL, retried=False)
    # kfp 2.17's local runner knows no loop over an output of another name
    with dsl.ParallelFor(planned.outputs["Output"], parallelism=pods_at_a_time()) as partition:
        part = launcher(
            ingest(
                store_uri=store_uri,
                partition=partition,
                state=planned.outputs["state"],
                mpp=mpp,
                patch_size=patch_size,
                default_mpp=default_mpp,
                settings=settings,
                workers=ingest_workers,
                ray_address=ray_address,
                cluster_profile=cluster_profile,
            ),
            size_from(planned, "ingest")._replace(gpus=""),
            cached=True,
        )
    cluster = {"use_gpu": use_gpu, "ray_address": ray_address, "cluster_profile": cluster_profile}
    encoded = launcher(
        encode(
            store_uri=store_uri,
            outcomes=dsl.Collected(part.output),
            encoder=encoder,
            settings=settings,
            workers=encode_workers,
            **cluster,
        ),
        size_from(planned, "encode"),
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
            target=target,
            time=time,
            event=event,
            target_column=target_column,
            bag=bag,
            epochs=epochs,
            settings=settings,
            workers=workers,
            **cluster,
        ),
        size_from(planned, "tune"),
    )
    trained = launcher(
        train(store_uri=store_uri, run_uri=run_uri, sweep_uri=tuned.output, workers=workers, **cluster),
        size_from(planned, "train"),
    )
    evaluated = evaluate(run_uri=run_uri, sweep_uri=tuned.output, baselines=baselines, state=trained.outputs["Output"])
    step(evaluated, Size(step_cpus, step_cpus, step_memory, step_memory), cached=True)
