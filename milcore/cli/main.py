"""The command line ``milcore``.

Every command takes URIs and ends with its result; ``--json`` makes that one JSON object.

Exit codes: 0 every slide accounted for and at least one usable; 2 bad input, one clear line; 3 no slide usable; 1 a
failure that is not the input's.
"""

import json
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from milcore import __version__, api
from milcore.cli.doctor import FindingLines
from milcore.cli.options import AsJson, ConfigFile, Run, Store, Values, option, options_of, swept_poolings, train_config
from milcore.config import (
    MAX_WORKERS,
    NOT_IN_SWEEP,
    AnnotationConfig,
    EncodeConfig,
    EvaluateConfig,
    ImportConfig,
    IngestConfig,
    LaunchConfig,
    PredictConfig,
    ServeConfig,
    SplitConfig,
    TrainConfig,
    TuneConfig,
    parse_config,
)
from milcore.errors import InputError
from milcore.runtime.command import exit_codes
from milcore.runtime.limits import cpus
from milcore.runtime.progress import from_here, log_line, printable

CPUS = cpus()
NONE_OK = 3

app = typer.Typer(
    help="Attention-based deep multiple instance learning on whole-slide images. Research use only.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def main() -> None:
    """Run the command line; an error becomes one line and its exit code."""
    with exit_codes():
        app()


def finish(summary: dict[str, Any], line: str, as_json: bool, code: int = 0) -> None:
    """End a command with its result, as a line or as JSON.

    Paths below the working folder are told from there.
    """
    typer.echo(json.dumps(_from_here(summary), sort_keys=True) if as_json else printable(line))
    if code:
        raise typer.Exit(code)


def _from_here(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _from_here(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_from_here(each) for each in value]
    return from_here(value) if isinstance(value, str) else value


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
    slides: Annotated[int, typer.Option(min=1, max=100_000, help="number of slides")] = 48,
    seed: Annotated[int, typer.Option(min=0, help="the same seed gives the same bytes")] = 0,
    workers: Annotated[int, typer.Option(min=1, max=MAX_WORKERS, help="processes on this machine")] = CPUS,
    as_json: AsJson = False,
) -> None:
    """Make a cohort of synthetic pyramidal slides with annotated lesions."""
    cohort = api.synthesise(out, slides, seed=seed, workers=workers)
    finish(cohort._asdict(), f"{len(cohort.slides)} slides; manifest {cohort.manifest}", as_json)


@app.command()
@options_of(config=IngestConfig, annotations=AnnotationConfig)
def ingest(
    manifest: Annotated[
        str, typer.Argument(metavar="MANIFEST", help="CSV or Parquet with slide_id, uri, label and optional columns")
    ],
    store: Store,
    config: Values,
    annotations: Values,
    positive: Annotated[str | None, typer.Option(help="class name that counts as positive")] = None,
    workers: Annotated[
        int,
        typer.Option(min=0, max=MAX_WORKERS, help="processes on this machine, or Ray workers; 0 works in this process"),
    ] = CPUS,
    ray_address: Annotated[
        str | None,
        typer.Option(
            help="deal slides to Ray workers instead: local, rayjob (a cluster that KubeRay makes), "
            "http(s)://host:8265 (job on a standing cluster), or host:port of one"
        ),
    ] = None,
    cluster_profile: Annotated[
        str, typer.Option(help="YAML file that describes the clusters of rayjob (empty: the defaults)")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Cut the slides of a manifest into patches.

    A bad slide is quarantined with its reason, the others go on.
    """
    on_ray = {"ray_address": ray_address, "cluster_profile": cluster_profile}
    report = api.ingest(manifest, store, positive=positive, workers=workers, **on_ray, **config, **annotations)
    finish(report.as_dict(), f"{report.line}; {report.page}", as_json, code=0 if report.ok else NONE_OK)


@app.command("import")
@options_of(config=ImportConfig)
def import_(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="a file, or a folder with a file per slide")],
    store: Store,
    config: Values,
    as_json: AsJson = False,
) -> None:
    """Make a store of features or patches made elsewhere.

    A bad slide is quarantined with its reason.
    """
    report = api.import_cohort(source, store, **config)
    for slide_id, reason in report.without_picture.items():
        log_line(f"no picture of {slide_id}: {reason}")
    if report.unlabelled:
        first, count = ", ".join(report.unlabelled[:5]), len(report.unlabelled)
        log_line(f"left out, being in no row of the labels: {count} file(s), {first}{' …' if count > 5 else ''}")
    line = report.line + _types_text(report.feature_types)
    finish(report.as_dict(), line, as_json, code=0 if report.ok else NONE_OK)


@app.command()
@options_of(config=EncodeConfig, launch=LaunchConfig)
def encode(store: Store, config: Values, launch: Values, as_json: AsJson = False) -> None:
    """Compute features/<name> of every slide with a frozen encoder.

    Slides that have them are left as they are.
    """
    report = api.encode(store, **config, **launch)
    summary = {"features": report.name, "slides": report.slides, "patches": report.patches, "types": report.types}
    line = f"features/{report.name}: {len(report.slides)} slides, {report.patches} patches{_types_text(report.types)}"
    finish(summary, line, as_json)


def _types_text(types: Mapping[str, int]) -> str:
    """End of a line: types of features by number of slides."""
    counts = ", ".join(f"{kind} of {count}" for kind, count in sorted(types.items()))
    return f"; features stored in {counts}" if counts else ""


@app.command()
@options_of(settings=TrainConfig, split=SplitConfig, launch=LaunchConfig)
def train(
    store: Store,
    run: Run,
    settings: Values,
    split: Values,
    launch: Values,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Train attention-MIL on a store, once or in folds; the same run folder resumes."""
    settings_of_run = train_config(config, settings)
    finished = api.train(store, run, config=settings_of_run, **split, **launch)
    summary: dict[str, Any] = {"run": run, "train": settings_of_run.model_dump(mode="json")}
    out_of_fold = finished.out_of_fold()
    if out_of_fold is not None:
        summary["out_of_fold"] = out_of_fold.to_json()
    finish(summary, f"trained {run}" + ("" if out_of_fold is None else f": {out_of_fold.line}"), as_json)


@app.command()
@options_of(
    sweep=TuneConfig,
    settings=TrainConfig,
    split=SplitConfig,
    launch=LaunchConfig,
    descriptions={"workers": "trials at a time, each a Ray worker; 0: as many as the cluster has room for"},
    leave_out=NOT_IN_SWEEP,
)
def tune(
    store: Store,
    out: Annotated[
        str, typer.Argument(metavar="OUT", help="sweep folder: a folder or s3:// URI; the same one resumes")
    ],
    sweep: Values,
    settings: Values,
    split: Values,
    launch: Values,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Sweep pooling, learning rate and more on validation.

    Ends with best.json and splits.parquet for milcore train.
    """
    train = train_config(config, settings, swept_poolings(sweep))
    finished = api.tune(store, out, train=train, **sweep, **split, **launch)
    best, verdict = finished.require_best(), finished.verdict()
    summary = {"best": best.model_dump(mode="json"), "verdict": verdict._asdict(), "out": out}
    finish(summary, f"{verdict.line}: {best.pooling}, learning rate {best.learning_rate:.2g}; {out}", as_json)


@app.command()
@options_of(config=EvaluateConfig, annotations=AnnotationConfig)
def evaluate(
    run: Run,
    config: Values,
    annotations: Values,
    sweep: Annotated[str | None, typer.Option(help="sweep the run took its settings from; shows its trials")] = None,
    compare_with: Annotated[
        str | None,
        typer.Option(
            metavar="RUN",
            help="a run on the same slides, such as one split by patient where this one is split by site; shows the "
            "difference of AUROC on the slides that both left out",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure a run on the untouched test split, check and draw its attention.

    Writes predictions, metrics, attention and the report into the run folder.
    """
    evaluation = api.evaluate(run, sweep=sweep, compare_with=compare_with, **config, **annotations)
    finish(evaluation.as_dict(), f"test split: {evaluation.line}; report {evaluation.report}", as_json)


@app.command()
@options_of(config=PredictConfig, leave_out={"default_mpp": "the option is --mpp"})
def predict(
    run: Run,
    slides: Annotated[
        list[str],
        typer.Argument(metavar="[SLIDE...] OUT", help="slides, then OUT: the folder for predictions and attention"),
    ],
    config: Values,
    manifest: Annotated[
        str | None,
        typer.Option(help="in place of SLIDE: CSV or Parquet with slide_id, uri; also patient_id, mpp"),
    ] = None,
    store: Annotated[
        str | None,
        typer.Option(help="in place of SLIDE: a patch store with features of the encoder that made the run's"),
    ] = None,
    workers: Annotated[int, option(LaunchConfig, "workers", "for a store: Ray workers; 0 computes in this process")] = (
        LaunchConfig().workers
    ),
    ray_address: Annotated[str, option(LaunchConfig, "ray_address")] = LaunchConfig().ray_address,
    cluster_profile: Annotated[str, option(LaunchConfig, "cluster_profile")] = LaunchConfig().cluster_profile,
    mpp: Annotated[float | None, typer.Option(min=0.001, help="um/px of slides that carry none")] = None,
    as_json: AsJson = False,
) -> None:
    """Score new slides, through the settings that the run recorded, or a store's features.

    The same OUT resumes, and keeps every slide predicted into it. A file's id is its name without suffix, which it
    keeps; where another file has that name, a short digest of the URI is added.
    """
    *uris, out = slides
    on_ray = {"workers": workers, "ray_address": ray_address, "cluster_profile": cluster_profile}
    of_slides = {"manifest": manifest, "default_mpp": mpp}
    predictions = api.predict(run, uris, out, store=store, **of_slides, **on_ray, **config)
    line = f"{len(predictions)} slides scored; {out}"
    finish(predictions.as_dict(), line, as_json, code=0 if predictions else NONE_OK)


@app.command()
@options_of(config=ServeConfig)
def serve(
    runs: Annotated[
        list[str],
        typer.Argument(metavar="RUN...", help="run folders, or NAME=RUN; else a model's name is its folder's"),
    ],
    config: Values,
    as_json: AsJson = False,
) -> None:
    """Answer HTTP requests with the predictions of runs, until SIGTERM or Ctrl-C.

    Open Inference Protocol v2 with binary tensors, and plain JSON; needs milcore[serve].
    """
    from milcore.serving.service import serve as serve_runs  # noqa: PLC0415 - Ray: seconds to import

    names = serve_runs(runs, parse_config(ServeConfig, config))
    finish({"models": names}, f"stopped serving {', '.join(names)}", as_json)


@app.command()
def doctor(
    uri: Annotated[
        str | None, typer.Argument(metavar="[URI]", help="a store or run, there or to be made: a folder or s3:// URI")
    ] = None,
    cluster: Annotated[
        bool, typer.Option("--cluster", help="check the Kubernetes cluster of your kubeconfig, by two short Jobs too")
    ] = False,
    namespace: Annotated[str | None, typer.Option(help="of the cluster [default: the kubeconfig's]")] = None,
    cluster_profile: Annotated[
        str, typer.Option(help="YAML file that describes the clusters of rayjob (empty: that of the namespace)")
    ] = "",
    kfp: Annotated[
        str | None, typer.Option(metavar="HOST", help="address of Kubeflow Pipelines to check: http(s)://host:port")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check before a run whether it will work: machine, store, cluster, pipelines.

    Each line is ok, a warning or a failure, with what to do. Exit code 1 on any failure.
    """
    lines = FindingLines()
    report = api.doctor(
        uri,
        cluster=cluster,
        namespace=namespace,
        cluster_profile=cluster_profile,
        kfp=kfp,
        show=None if as_json else lambda each: lines.show(**each._asdict()),
    )
    finish(report.as_dict(), report.line, as_json, code=0 if report.ok else 1)


@app.command()
def info(
    uri: Annotated[str, typer.Argument(metavar="URI", help="a patch store or a run folder")],
    verify: Annotated[
        bool, typer.Option("--verify", help="first read every byte, on all cores, and compare it with its checksums")
    ] = False,
    make_catalogue: Annotated[
        bool,
        typer.Option(
            "--rebuild",
            help="first make a store's catalogue anew from its slides; no other program may write to it meanwhile",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show the figures of a patch store or a run folder."""
    from milcore.cli.info import damage, describe, rebuild  # noqa: PLC0415 - a run's figures need torch: seconds to import

    if make_catalogue:
        rebuild(uri)
    lines = damage(uri) if verify else []
    if lines:
        for line in lines:
            log_line(line)
        finish({"damage": lines}, f"{len(lines)} arrays or files of {uri} are damaged", as_json, InputError.exit_code)
    summary = describe(uri)
    *lines, last = (f"{name}: {value}" for name, value in summary.items())
    for line in () if as_json else lines:
        typer.echo(printable(line))
    finish(summary, last, as_json)
