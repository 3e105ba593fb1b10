"""The command line: every command takes URIs and ends with what it did; ``--json`` makes that one JSON object.

Exit codes: 0 every slide accounted for and at least one usable; 2 bad input, one clear line; 3 no slide usable; 1 a
failure that is not the input's.
"""

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from functools import partial
from typing import Annotated, Any

import typer

from milcore import __version__
from milcore.cli.options import (
    ActivationMemory,
    AsJson,
    BagUnit,
    BatchSize,
    CacheMemory,
    ConfigFile,
    Epochs,
    Features,
    PoolingLevel,
    Profile,
    RayAddress,
    Run,
    Seed,
    Splits,
    SplitSeed,
    Store,
    TrainableEncoder,
    UseGpu,
    Workers,
    given,
    launch_config,
    setting,
    sweep_settings,
    train_config,
)
from milcore.config import (
    ATTENTION_FORMATS,
    EncodeConfig,
    ImportConfig,
    IngestConfig,
    LaunchConfig,
    SplitConfig,
    TrainConfig,
    TuneConfig,
    parse_config,
)
from milcore.errors import InputError, MILError
from milcore.runtime import storage
from milcore.runtime.progress import figure, say, track

# ruff: noqa: PLC0415 - importing torch or ray takes seconds, and `--help` needs neither

LAUNCH = LaunchConfig()
CPUS = len(os.sched_getaffinity(0))
NONE_OK = 3

app = typer.Typer(
    help="Attention-based deep multiple instance learning on whole-slide images. Research use only.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def main() -> None:
    """Run the command line; an error raised on purpose becomes one line and its exit code."""
    try:
        app()
    except MILError as error:
        say(f"milcore: {error.line}")
        sys.exit(error.exit_code)


def finish(summary: dict[str, Any], line: str, as_json: bool, code: int = 0) -> None:
    """End a command: what it did, for a person or as one JSON object."""
    typer.echo(json.dumps(summary, sort_keys=True) if as_json else line)
    if code:
        raise typer.Exit(code)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="print the version and exit")
    ] = False,
) -> None:
    """Attention-based deep multiple instance learning on whole-slide images. Research use only."""


@app.command()
def synth(
    out: Annotated[
        str, typer.Argument(metavar="OUT", help="folder to write slides, annotations and manifest.csv into")
    ],
    slides: Annotated[int, typer.Option(min=1, help="number of slides")] = 48,
    seed: Annotated[int, typer.Option(min=0, help="the same seed gives the same bytes")] = 0,
    workers: Annotated[int, typer.Option(min=1, help="processes on this machine")] = CPUS,
    as_json: AsJson = False,
) -> None:
    """Make a cohort of synthetic pyramidal slides with annotated lesions."""
    from milcore.cohort.synthetic.generate import synthesise

    made = list(track(synthesise(out, slides, seed, workers), "synth", slides))
    manifest = storage.join(storage.absolute(out), "manifest.csv")
    finish({"slides": made, "manifest": manifest}, f"{len(made)} slides; manifest {manifest}", as_json)


@contextlib.contextmanager
def slide_map(ray_address: str | None, workers: int) -> Iterator[Any]:
    """Ray's map for as long as the context; None where no cluster is named."""
    if ray_address is None:
        yield None
        return
    from milcore.cluster.workers.connect import connected
    from milcore.cluster.workers.map import map_on_ray

    launch = parse_config(LaunchConfig, {"ray_address": ray_address, "workers": max(1, workers)})
    with connected(launch):
        yield partial(map_on_ray, launch=launch)


@app.command()
def ingest(
    manifest: Annotated[
        str, typer.Argument(metavar="MANIFEST", help="CSV or Parquet with slide_id, uri, label and optional columns")
    ],
    store: Store,
    mpp: Annotated[float | None, setting(IngestConfig, "mpp")] = None,
    patch_size: Annotated[int | None, setting(IngestConfig, "patch_size")] = None,
    stride: Annotated[int | None, setting(IngestConfig, "stride")] = None,
    border: Annotated[str | None, setting(IngestConfig, "border")] = None,
    default_mpp: Annotated[float | None, setting(IngestConfig, "default_mpp")] = None,
    reader: Annotated[str | None, setting(IngestConfig, "reader")] = None,
    codec: Annotated[str | None, setting(IngestConfig, "codec")] = None,
    jpeg_quality: Annotated[int | None, setting(IngestConfig, "jpeg_quality")] = None,
    min_tissue: Annotated[float | None, setting(IngestConfig, "min_tissue")] = None,
    max_unreadable: Annotated[int | None, setting(IngestConfig, "max_unreadable")] = None,
    stain_normalisation: Annotated[str | None, setting(IngestConfig, "stain_normalisation")] = None,
    positive: Annotated[str | None, typer.Option(help="class name that counts as positive")] = None,
    workers: Annotated[int, typer.Option(min=0, help="processes on this machine; 0 works in this one")] = CPUS,
    ray_address: Annotated[
        str | None, typer.Option(help="local or host:port: deal slides to that many workers of a Ray cluster instead")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Cut the slides of a manifest into patches; a bad slide is quarantined with its reason, the others go on."""
    config = parse_config(IngestConfig, given(IngestConfig, locals()))
    from milcore.ingestion.cohort import ingest as ingest_cohort
    from milcore.ingestion.cohort import ingest_counts, plan_cohort
    from milcore.ingestion.overview import write_cohort_page

    cohort = plan_cohort(manifest, store, positive)
    with slide_map(ray_address, workers) as map_slides:
        outcomes = list(
            track(ingest_cohort(store, config, workers, map_slides=map_slides), "ingest", len(cohort.slides))
        )
    summary = ingest_counts(outcomes)
    for slide_id, reason in summary["quarantined"].items():
        say(f"quarantined {slide_id}: {reason}")
    summary["page"] = write_cohort_page(store)
    line = f"{len(summary['ok'])} slides ok, {len(summary['quarantined'])} quarantined, {summary['patches']} patches"
    finish(summary, f"{line}; {summary['page']}", as_json, code=0 if summary["ok"] else NONE_OK)


@app.command("import")
def import_(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="a file, or a folder with a file per slide")],
    store: Store,
    format: Annotated[str, setting(ImportConfig, "format")],  # noqa: A002 - the name of the setting
    name: Annotated[str | None, setting(ImportConfig, "name")] = None,
    labels: Annotated[str | None, setting(ImportConfig, "labels")] = None,
    positive: Annotated[str | None, setting(ImportConfig, "positive")] = None,
    positive_instances: Annotated[str | None, setting(ImportConfig, "positive_instances")] = None,
    xy: Annotated[str | None, setting(ImportConfig, "xy")] = None,
    patch_size_level0: Annotated[float | None, setting(ImportConfig, "patch_size_level0")] = None,
    as_json: AsJson = False,
) -> None:
    """Make a store of features or patches made elsewhere; a bad slide is quarantined with its reason."""
    settings = given(ImportConfig, locals())
    if positive_instances is not None:
        settings["positive_instances"] = tuple(positive_instances.split(","))
    config = parse_config(ImportConfig, settings)
    from milcore.ingestion.imports.import_cohort import import_source

    summary = import_source(source, store, config)
    for slide_id, reason in summary["quarantined"].items():
        say(f"quarantined {slide_id}: {reason}")
    for slide_id, reason in summary["without_picture"].items():
        say(f"no picture of {slide_id}: {reason}")
    if summary["unlabelled"]:
        first, count = ", ".join(summary["unlabelled"][:5]), len(summary["unlabelled"])
        say(f"left out, being in no row of the labels: {count} file(s), {first}{' …' if count > 5 else ''}")
    line = f"{len(summary['ok'])} slides ok, {len(summary['quarantined'])} quarantined, {summary['patches']} instances"
    finish(summary, line, as_json, code=0 if summary["ok"] else NONE_OK)


@app.command()
def encode(
    store: Store,
    encoder: Annotated[str | None, setting(EncodeConfig, "encoder")] = None,
    name: Annotated[str | None, setting(EncodeConfig, "name")] = None,
    patches_per_batch: Annotated[int | None, setting(EncodeConfig, "patches_per_batch")] = None,
    workers: Workers = 0,
    use_gpu: UseGpu = False,
    ray_address: RayAddress = LAUNCH.ray_address,
    cluster_profile: Profile = LAUNCH.cluster_profile,
    as_json: AsJson = False,
) -> None:
    """Compute features/<name> of every slide with a frozen encoder; slides that have them are left as they are."""
    config, launch = parse_config(EncodeConfig, given(EncodeConfig, locals())), launch_config(locals())
    from milcore.cluster.launch import encode_with
    from milcore.encoders.extraction.encode import named

    config = named(config)
    encoded = encode_with(store, config, launch)
    patches = sum(slide.patches for slide in encoded)
    summary = {"features": config.name, "slides": [s.slide_id for s in encoded], "patches": patches}
    finish(summary, f"features/{config.name}: {len(encoded)} slides, {patches} patches", as_json)


@app.command()
def train(
    store: Store,
    run: Run,
    features: Features = None,
    encoder: TrainableEncoder = None,
    train_blocks: Annotated[int | None, setting(TrainConfig, "train_blocks")] = None,
    feature_form: Annotated[str | None, setting(TrainConfig, "feature_form")] = None,
    augment: Annotated[bool | None, setting(TrainConfig, "augment")] = None,
    pooling: Annotated[str | None, setting(TrainConfig, "pooling")] = None,
    level: PoolingLevel = None,
    bag: BagUnit = None,
    attention_heads: Annotated[str | None, setting(TrainConfig, "attention_heads")] = None,
    lse_sharpness: Annotated[float | None, setting(TrainConfig, "lse_sharpness")] = None,
    noisy_and_slope: Annotated[float | None, setting(TrainConfig, "noisy_and_slope")] = None,
    learning_rate: Annotated[float | None, setting(TrainConfig, "learning_rate")] = None,
    weight_decay: Annotated[float | None, setting(TrainConfig, "weight_decay")] = None,
    schedule: Annotated[str | None, setting(TrainConfig, "schedule")] = None,
    warmup_epochs: Annotated[float | None, setting(TrainConfig, "warmup_epochs")] = None,
    clip_norm: Annotated[float | None, setting(TrainConfig, "clip_norm")] = None,
    class_balance: Annotated[str | None, setting(TrainConfig, "class_balance")] = None,
    label_smoothing: Annotated[float | None, setting(TrainConfig, "label_smoothing")] = None,
    ema_decay: Annotated[float | None, setting(TrainConfig, "ema_decay")] = None,
    dropout: Annotated[float | None, setting(TrainConfig, "dropout")] = None,
    instances_per_bag: Annotated[int | None, setting(TrainConfig, "instances_per_bag")] = None,
    epochs: Epochs = None,
    patience: Annotated[int | None, setting(TrainConfig, "patience")] = None,
    batch_size: BatchSize = None,
    precision: Annotated[str | None, setting(TrainConfig, "precision")] = None,
    activation_mb: ActivationMemory = None,
    cache_mb: CacheMemory = None,
    seed: Seed = None,
    splits: Splits = None,
    split_seed: SplitSeed = None,
    folds: Annotated[int | None, setting(SplitConfig, "folds")] = None,
    config: ConfigFile = None,
    workers: Workers = 0,
    use_gpu: UseGpu = False,
    ray_address: RayAddress = LAUNCH.ray_address,
    cluster_profile: Profile = LAUNCH.cluster_profile,
    as_json: AsJson = False,
) -> None:
    """Train attention-MIL on a store, once or in folds; the same run folder resumes."""
    settings = train_config(config, given(TrainConfig, locals()))
    split_config = parse_config(SplitConfig, given(SplitConfig, locals()))
    launch = launch_config(locals())
    from milcore.cluster.launch import train_with
    from milcore.training.cross_validation import line
    from milcore.training.run import prepare_run
    from milcore.training.run_folder import OUT_OF_FOLD

    spec = prepare_run(store, run, settings, split_config)
    train_with(run, launch)
    summary: dict[str, Any] = {"run": run, "train": settings.model_dump(mode="json")}
    if spec.folds:
        summary["out_of_fold"] = storage.read_json(storage.join(run, OUT_OF_FOLD))
    finish(summary, f"trained {run}" + (f": {line(summary['out_of_fold'])}" if spec.folds else ""), as_json)


@app.command()
def tune(
    store: Store,
    out: Annotated[
        str, typer.Argument(metavar="OUT", help="sweep folder: a folder or s3:// URI; the same one resumes")
    ],
    features: Features = None,
    encoder: TrainableEncoder = None,
    poolings: Annotated[str | None, setting(TuneConfig, "poolings", "--pooling")] = None,
    level: PoolingLevel = None,
    bag: BagUnit = None,
    learning_rate_min: Annotated[float | None, setting(TuneConfig, "learning_rate_min")] = None,
    learning_rate_max: Annotated[float | None, setting(TuneConfig, "learning_rate_max")] = None,
    trials: Annotated[int | None, setting(TuneConfig, "trials")] = None,
    tune_seed: Annotated[int | None, setting(TuneConfig, "tune_seed")] = None,
    search: Annotated[list[str] | None, setting(TuneConfig, "search")] = None,
    objective_folds: Annotated[int | None, setting(TuneConfig, "objective_folds")] = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    activation_mb: ActivationMemory = None,
    cache_mb: CacheMemory = None,
    seed: Seed = None,
    splits: Splits = None,
    split_seed: SplitSeed = None,
    config: ConfigFile = None,
    workers: Annotated[
        int, typer.Option(min=0, help="trials at a time, each a Ray worker; 0: as many as the cluster has room for")
    ] = 0,
    use_gpu: UseGpu = False,
    ray_address: RayAddress = LAUNCH.ray_address,
    cluster_profile: Profile = LAUNCH.cluster_profile,
    as_json: AsJson = False,
) -> None:
    """Sweep pooling, learning rate and more on validation; ends with best.json and splits.parquet for milcore train."""
    sweep = parse_config(TuneConfig, sweep_settings(config, locals()))
    split_config = parse_config(SplitConfig, given(SplitConfig, locals()))
    launch = launch_config(locals())
    from milcore.cluster.launch import tune_with
    from milcore.training.sweep import prepare_sweep, read_verdict

    prepare_sweep(store, out, sweep, split_config)
    best = tune_with(out, launch)
    verdict = read_verdict(out)
    summary = {"best": best.model_dump(mode="json"), "verdict": verdict._asdict(), "out": out}
    finish(summary, f"{verdict.line}: {best.pooling}, learning rate {best.learning_rate:.2g}; {out}", as_json)


@app.command()
def evaluate(
    run: Run,
    baselines: Annotated[bool, typer.Option(help="also train and show what the model has to beat")] = True,
    sweep: Annotated[str | None, typer.Option(help="sweep the run took its settings from; shows its trials")] = None,
    attention: Annotated[str, typer.Option(help="forms of each test slide's attention, commas between")] = ",".join(
        ATTENTION_FORMATS
    ),
    with_leave_one_out: Annotated[
        bool, typer.Option("--without-each", help="also tell what the model says without each patch; seconds a slide")
    ] = False,
    use_gpu: Annotated[bool, typer.Option(help="compute on a CUDA device")] = False,
    as_json: AsJson = False,
) -> None:
    """Predict, measure on the untouched test split, check and draw attention, and write the report."""
    unknown = sorted(set(attention.split(",")) - set(ATTENTION_FORMATS))
    if unknown:
        raise InputError(f"--attention got {', '.join(unknown)}; allowed: {', '.join(ATTENTION_FORMATS)}")
    forms = tuple(form for form in ATTENTION_FORMATS if form in attention.split(","))
    from milcore.evaluation.evaluate import evaluate as evaluate_run

    metrics = evaluate_run(
        run,
        baselines=baselines,
        sweep_uri=sweep,
        attention_formats=forms,
        with_leave_one_out=with_leave_one_out,
        use_gpu=use_gpu,
    )
    figures = ", ".join(f"{name} {figure(metrics[name])}" for name in ("auroc", "accuracy", "localisation_auroc"))
    line = f"test split: {figures}; report {metrics['report']}"
    finish(metrics, line, as_json)


@app.command()
def predict(
    run: Run,
    slides: Annotated[
        list[str],
        typer.Argument(metavar="[SLIDE...] OUT", help="slides, then OUT: the folder for predictions and attention"),
    ],
    manifest: Annotated[
        str | None,
        typer.Option(help="in place of SLIDE: CSV or Parquet with slide_id, uri; also patient_id, mpp"),
    ] = None,
    mpp: Annotated[float | None, typer.Option(min=0.001, help="um/px of slides that carry none")] = None,
    use_gpu: Annotated[bool, typer.Option(help="compute on a CUDA device")] = False,
    as_json: AsJson = False,
) -> None:
    """Score new slides through the run's own ingestion and encoder settings; the same OUT resumes."""
    from milcore.evaluation.predict import predict as predict_files
    from milcore.evaluation.predict import predict_manifest

    *slide_uris, out = slides
    if bool(slide_uris) == (manifest is not None):
        raise InputError(
            f"predict got {len(slide_uris)} slides and manifest {manifest!r} beside RUN {run!r} and OUT {out!r}; "
            "allowed: RUN SLIDE… OUT or RUN OUT --manifest FILE; name slides or a manifest"
        )
    if manifest is None:
        summary = predict_files(run, slide_uris, out, mpp, use_gpu=use_gpu)
    else:
        summary = predict_manifest(run, manifest, out, mpp, use_gpu=use_gpu)
    for slide_id, reason in summary["quarantined"].items():
        say(f"quarantined {slide_id}: {reason}")
    finish(summary, f"{len(summary['ok'])} slides scored; {out}", as_json, code=0 if summary["ok"] else NONE_OK)


@app.command()
def info(
    uri: Annotated[str, typer.Argument(metavar="URI", help="a patch store or a run folder")], as_json: AsJson = False
) -> None:
    """Say what a patch store or a run folder holds."""
    from milcore.cli.info import describe

    summary = describe(uri)
    finish(summary, "\n".join(f"{name}: {value}" for name, value in summary.items()), as_json)
