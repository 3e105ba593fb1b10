"""The verbs of milcore, for the command line, the components and notebooks.

Each keeps its result in storage and does only what is missing there. A store or a run may be named by its URI or by
what an earlier verb returned; settings are keywords, the fields of the config classes of ``milcore.config``. Imports
are inside functions, so that naming a verb costs nothing: torch and Ray are imported where they compute.
"""

# ruff: noqa: PLC0415 - see above

import contextlib
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from milcore.config import (
    ATTENTION_FORMATS,
    NOT_IN_SWEEP,
    AnnotationConfig,
    AttentionFormat,
    Config,
    EncodeConfig,
    EvaluateConfig,
    ImportConfig,
    IngestConfig,
    LaunchConfig,
    PipelineSettings,
    PredictConfig,
    SplitConfig,
    TargetConfig,
    TrainConfig,
    TuneConfig,
    parse_config,
    with_settings,
    without_unread,
)
from milcore.errors import InputError

if TYPE_CHECKING:
    from milcore.cluster.doctor.finding import DoctorReport, Finding
    from milcore.cohort.manifest import Manifest
    from milcore.evaluation.evaluation import Evaluation
    from milcore.evaluation.predictions import Predictions
    from milcore.ingestion.cohort import IngestCounts, PartitionCounts
    from milcore.ingestion.report import ImportReport, IngestReport
    from milcore.store.store import PatchStore
    from milcore.training.run_folder import Run
    from milcore.training.sweep import Sweep

    Uri: TypeAlias = str | os.PathLike[str]
    StoreLike: TypeAlias = Uri | PatchStore | IngestReport | "EncodeReport" | Run
    RunLike: TypeAlias = Uri | Run | Evaluation
    SweepLike: TypeAlias = Uri | Sweep

# of a prediction whose files are not kept
FORMATS_IN_MEMORY: tuple[AttentionFormat, ...] = ("parquet", "png")


class SyntheticCohort(NamedTuple):
    """Ids of synthetic slides, and the URI of their manifest."""

    slides: list[str]
    manifest: str


class EncodeReport(NamedTuple):
    """Features of a store.

    Args:
        store: the patch store.
        name: of the features.
        slides: ids of the slides that have them.
        patches: in all.
        types: number of slides by the type in which their features are stored; empty where a job has encoded them.
    """

    store: "PatchStore"
    name: str
    slides: list[str]
    patches: int
    types: dict[str, int]

    def __repr__(self) -> str:
        return f"EncodeReport(features/{self.name}: {len(self.slides)} slides, {self.patches} patches)"


class IngestionPlan(NamedTuple):
    """Ingestion of a pipeline.

    Args:
        partitions: ``i/n`` of each step.
        state: digest of slides and patches; a new one while any is missing, and where a job ingests them.
    """

    partitions: list[str]
    state: str


@with_settings()
def synthesise(out: "Uri", slides: int = 48, *, seed: int = 0, workers: int | None = None) -> SyntheticCohort:
    """Write a cohort of synthetic pyramidal slides with annotated lesions.

    Args:
        out: folder of the cohort.
        slides: how many.
        seed: the same seed gives the same bytes.
        workers: processes on this machine; None: one for each core.
    """
    from milcore.cohort.synthetic.generate import synthesise
    from milcore.runtime import storage
    from milcore.runtime.progress import track

    folder = _uri("out", out)
    written = synthesise(folder, slides, seed, _workers(workers))
    slide_ids = list(track(written, "synth", slides))
    return SyntheticCohort(slide_ids, storage.join(storage.absolute(folder), "manifest.csv"))


def _workers(workers: int | None) -> int:
    """Number of workers; None stands for one on each CPU of this process."""
    from milcore.runtime.limits import cpus

    return cpus() if workers is None else parse_config(LaunchConfig, {"workers": workers}).workers


def _uri(name: str, value: "Uri") -> str:
    """The text of a path or URI.

    Raises:
        InputError: it is none, or empty.
    """
    if not isinstance(value, str | os.PathLike) or not os.fspath(value):
        raise InputError(f"{name}: expected a path or URI, got {value!r}; allowed: text or a Path, not empty")
    return os.fspath(value)


def _store_uri(source: "StoreLike") -> str:
    """URI of the store that an argument names."""
    if isinstance(source, str | os.PathLike):
        return _uri("store", source)
    from milcore.store.store import PatchStore

    run_or_source = getattr(source, "run", source)
    store = getattr(run_or_source, "store", run_or_source)
    if not isinstance(store, PatchStore):
        raise InputError(
            f"store: expected a patch store, got {source!r}; allowed: its URI, a PatchStore, an IngestReport, an "
            "EncodeReport, a Run or an Evaluation"
        )
    return store.uri


def _run_uri(source: "RunLike") -> str:
    """Absolute URI of the run that an argument names."""
    from milcore.training.run_folder import Run

    if isinstance(source, str | os.PathLike):
        return Run(_uri("run", source)).uri
    run = getattr(source, "run", source)
    if not isinstance(run, Run):
        raise InputError(f"run: expected a run, got {source!r}; allowed: its URI, a Run or an Evaluation")
    return run.uri


def _sweep(source: "SweepLike") -> "Sweep":
    """The sweep that an argument names, at an absolute URI."""
    from milcore.training.sweep import Sweep

    if isinstance(source, str | os.PathLike):
        return Sweep(_uri("sweep", source))
    if not isinstance(source, Sweep):
        raise InputError(f"sweep: expected a sweep, got {source!r}; allowed: its URI or a Sweep")
    return source


def doctor(  # noqa: PLR0913 - one keyword per option of the command
    uri: "Uri | None" = None,
    *,
    cluster: bool = False,
    namespace: str | None = None,
    cluster_profile: str = "",
    kfp: str | None = None,
    show: "Callable[[Finding], object] | None" = None,
) -> "DoctorReport":
    """Check before a run whether it will work, in seconds.

    Args:
        uri: a store or run, there or to be made; one object is written there and removed. None: none is checked.
        cluster: check the Kubernetes cluster of the kubeconfig too; two short Jobs are made there and removed.
        namespace: of the cluster; None: the kubeconfig's.
        cluster_profile: file of the cluster profile; empty: that of the namespace.
        kfp: address of Kubeflow Pipelines; None: none is checked.
        show: gets each finding as it comes.

    Returns:
        A finding for each check, with what to do about it.

    Raises:
        InputError: a place cannot be checked at all.
    """
    from milcore.cluster.doctor.diagnosis import Surroundings, diagnose

    place = None if uri is None else _uri("uri", uri)
    return diagnose(Surroundings(place, cluster, namespace, cluster_profile, kfp), show or (lambda _: None))


def check_manifest(manifest_uri: str, positive: str | None) -> None:
    """Read a manifest and refuse a bad one.

    Raises:
        InputError: every bad row.
    """
    from milcore.cohort.manifest import read_manifest

    read_manifest(manifest_uri, positive)


@with_settings(config=IngestConfig, annotations=AnnotationConfig)
def ingest(  # noqa: PLR0913 - one keyword per option of the command
    manifest: "Uri",
    store: "StoreLike",
    *,
    positive: str | int | None = None,
    workers: int | None = None,
    ray_address: str | None = None,
    cluster_profile: str = "",
    config: IngestConfig,
    annotations: AnnotationConfig,
) -> "IngestReport":
    """Cut the slides of a manifest into patches.

    A bad slide is quarantined with its reason, the others go on.

    Args:
        manifest: CSV or Parquet with slide_id, uri, label (for classification) and further columns.
        store: patch store to make or go on with.
        positive: class name that counts as positive; None: the later by name.
        workers: processes on this machine, or Ray workers; 0 works in this process; None: one for each core.
        ray_address: deal slides to the workers of a Ray cluster: ``local``, ``rayjob``, http(s)://host:8265 or
            host:port; None: to processes on this machine.
        cluster_profile: YAML file that describes the clusters of rayjob; empty: the defaults.
        config: settings of ingestion; fields given as keywords override its own.
        annotations: how annotations are read; fields likewise.

    Returns:
        The store, the slides that are ok, and the reasons of those in quarantine.

    Raises:
        InputError: every bad row of the manifest, or every annotation that cannot be read.
    """
    from milcore.ingestion.annotations import log_outside_tissue
    from milcore.ingestion.cohort import ingest as ingest_cohort
    from milcore.ingestion.cohort import ingest_counts, plan_cohort
    from milcore.ingestion.overview import write_cohort_page
    from milcore.ingestion.report import IngestReport
    from milcore.runtime.progress import track
    from milcore.store.store import PatchStore

    store_uri, workers = _store_uri(store), _workers(workers)
    positive = None if positive is None else str(positive)
    cohort = plan_cohort(_uri("manifest", manifest), store_uri, positive, annotations)
    _log_notes(cohort)
    if ray_address is not None and workers > 0:
        from milcore.cluster.launch import ingest_with

        on_ray: dict[str, object] = {"ray_address": ray_address, "workers": workers, "cluster_profile": cluster_profile}
        counts = ingest_with(store_uri, config, parse_config(LaunchConfig, on_ray))
    else:
        outcomes = ingest_cohort(store_uri, config, workers)
        counts = ingest_counts(track(outcomes, "ingest", len(cohort.slides)))
    PatchStore(store_uri).join_catalogue()
    _log_quarantined(counts["quarantined"])
    log_outside_tissue(PatchStore(store_uri))
    return IngestReport(PatchStore(store_uri), **counts, page=write_cohort_page(store_uri))


def _log_notes(manifest: "Manifest") -> None:
    from milcore.cohort.manifest_notes import manifest_notes
    from milcore.runtime.progress import log_line

    for note in manifest_notes(manifest):
        log_line(note)


def _log_quarantined(reasons: Mapping[str, str]) -> None:
    from milcore.runtime.progress import log_line

    for slide_id, reason in reasons.items():
        log_line(f"quarantined {slide_id}: {reason}")


def plan_ingestion(  # noqa: PLR0913 - manifest, store, and a keyword per config
    manifest_uri: str,
    store_uri: str,
    positive: str | None,
    partitions: int,
    *,
    annotations: AnnotationConfig | None = None,
    launch: LaunchConfig | None = None,
    target: TargetConfig | None = None,
) -> list[str]:
    """Make a manifest the store's cohort and divide it for a fan-out.

    Partitions are of about equal work, by the sizes of the slides. There is one where a job deals slides to its
    workers.

    Args:
        manifest_uri: CSV or Parquet with slide_id, uri, label (for classification) and further columns.
        store_uri: patch store to make or go on with.
        positive: class name that counts as positive; None: the later by name.
        partitions: how many at most; never more than slides.
        annotations: how they are read; None: by the defaults.
        launch: where slides are ingested; None: in the steps of the fan-out.
        target: of the model to come, which the manifest is checked for; None: it is not.

    Returns:
        The partitions as ``i/n``.

    Raises:
        InputError: every bad row of the manifest, every annotation that cannot be read, or nothing to train on.
    """
    from milcore.ingestion.cohort import plan_cohort
    from milcore.ingestion.partition import write_partitions

    cohort = plan_cohort(manifest_uri, store_uri, positive, annotations, target)
    _log_notes(cohort)
    if launch is not None and launch.is_job:
        return ["0/1"]
    count = max(1, min(partitions, len(cohort.slides)))
    write_partitions(store_uri, count)
    return [f"{index}/{count}" for index in range(count)]


def plan_pipeline(  # noqa: PLR0913 - as of ``plan_ingestion``
    manifest_uri: str,
    store_uri: str,
    positive: str | None,
    partitions: int,
    *,
    annotations: AnnotationConfig,
    launch: LaunchConfig,
    train: TrainConfig | None = None,
) -> IngestionPlan:
    """Plan the ingestion of a pipeline.

    Where no slide is missing one partition holds all: each more would cost a scheduler pods that do nothing. Storage
    that fails is tried again, bad input is not.

    Args:
        manifest_uri: CSV or Parquet with slide_id, uri, label (for classification) and further columns.
        store_uri: patch store to make or go on with.
        positive: class name that counts as positive; None: the later by name.
        partitions: how many at most; never more than slides.
        annotations: how they are read.
        launch: where slides are ingested.
        train: of the model to come, for whose target the manifest is checked; None: it is not.

    Raises:
        InputError: as of ``plan_ingestion``.
    """
    from milcore.runtime.step_retry import with_own_retries

    planned = with_own_retries(
        lambda: plan_ingestion(
            manifest_uri, store_uri, positive, partitions, annotations=annotations, launch=launch, target=train
        )
    )
    return with_own_retries(lambda: _with_state(store_uri, planned, launch))


def _with_state(store_uri: str, partitions: list[str], launch: LaunchConfig) -> IngestionPlan:
    """The plan of these partitions, by what the store holds."""
    from milcore.ingestion.fingerprint import store_state
    from milcore.runtime.digest import unique_digest

    state = None if launch.is_job else store_state(store_uri)
    return IngestionPlan(partitions, unique_digest()) if state is None else IngestionPlan(["0/1"], state)


def ingest_partition(store_uri: str, partition: str, config: IngestConfig, launch: LaunchConfig) -> "PartitionCounts":
    """Ingest one partition of a planned cohort; as a job, the whole cohort.

    Args:
        store_uri: store that ``plan_ingestion`` gave its cohort.
        partition: ``i/n``, one of those it returned.
        config: how a slide becomes patches.
        launch: workers of a job on ``rayjob`` or http(s)://; elsewhere processes on this machine, at least one.

    Returns:
        Numbers of slides by their outcome, and of patches.
    """
    from milcore.ingestion.cohort import ingest as ingest_cohort
    from milcore.ingestion.cohort import ingest_counts, partition_counts
    from milcore.ingestion.partition import read_partition
    from milcore.runtime.progress import track
    from milcore.store.store import PatchStore

    if launch.is_job:
        from milcore.cluster.launch import ingest_with

        return partition_counts(ingest_with(store_uri, config, launch))
    index, count = (int(part) for part in partition.split("/"))
    slides = len(read_partition(PatchStore(store_uri), index, count))
    outcomes = ingest_cohort(store_uri, config, max(1, launch.workers), (index, count))
    return partition_counts(ingest_counts(track(outcomes, f"ingest {partition}", slides)))


def gather_ingestion(store_uri: str, counts: "Sequence[PartitionCounts]") -> "IngestCounts":
    """Account for every slide of a cohort, after the fan-in, and write its overview.

    Args:
        store_uri: patch store.
        counts: what ``ingest_partition`` returned for each.

    Returns:
        ``ok`` ids, ``quarantined`` ids with reasons, and counts.

    Raises:
        MILError: a slide of the cohort has no record, or is in no partition.
        InputError: no slide is ok.
    """
    from milcore.ingestion.annotations import log_outside_tissue
    from milcore.ingestion.cohort import join_counts
    from milcore.ingestion.overview import write_cohort_page
    from milcore.runtime.progress import log_line
    from milcore.store.store import PatchStore

    PatchStore(store_uri).join_catalogue()
    log_line(f"cohort: {write_cohort_page(store_uri)}")
    summary = join_counts(store_uri, counts)
    _log_quarantined(summary["quarantined"])
    log_outside_tissue(PatchStore(store_uri))
    return summary


@contextlib.contextmanager
def one_line_errors(program: str = "milcore") -> Iterator[None]:
    """Exit with an error's one line and code in place of a traceback.

    Args:
        program: begins the line.
    """
    from milcore.runtime.command import exit_codes

    with exit_codes(program):
        yield


@contextlib.contextmanager
def pipeline_step(step: str, folder: str) -> Iterator[None]:
    """Exit as ``one_line_errors``, and keep the line of a step that fails.

    ``finish_pipeline_run`` reads it.

    Args:
        step: its name.
        folder: what it works on: a store, a run or predictions.
    """
    from milcore.runtime.step_failure import kept_failure

    with one_line_errors(), kept_failure(step, folder):
        yield


def check_settings(parameters: Mapping[str, object], settings: str) -> PipelineSettings:
    """Refuse bad parameters and settings of a pipeline before its first slide is read.

    Args:
        parameters: values by name.
        settings: JSON of settings that are no parameters.

    Returns:
        The configs of the pipeline's steps.

    Raises:
        InputError: one line naming what is unknown, out of range, or given twice.
    """
    from milcore.training.search_space import trial_configs

    configs = PipelineSettings(parameters, settings)
    configs.check()
    trial_configs(configs.tune)
    return configs


def check_launches(launches: "Sequence[tuple[str, LaunchConfig]]") -> None:
    """Refuse the jobs of a pipeline that cannot run, before its first one.

    With ``rayjob`` the profile parses, it has nodes for the workers, and each right of the launcher is there. Nothing
    is written to Kubernetes.

    Args:
        launches: of the steps that launch a job, each with the parameter that counts its workers.

    Raises:
        InputError: one line naming what is missing.
        ClusterError: the API does not answer.
    """
    if any(launch.ray_address == "rayjob" for _, launch in launches):
        from milcore.cluster.doctor.launcher import check_launches
        from milcore.runtime.step_retry import with_own_retries

        with_own_retries(lambda: check_launches(launches, os.environ))


def sweep_uri(run_uri: str) -> str:
    """The folder of the sweep that chooses a pipeline run's settings."""
    from milcore.training.run_folder import Run

    return Run(run_uri).sweep_uri


@with_settings(config=ImportConfig)
def import_cohort(source: "Uri", store: "StoreLike", *, config: ImportConfig) -> "ImportReport":
    """Make a store of features or patches made elsewhere.

    A bad slide is quarantined with its reason.

    Args:
        source: a file, or a folder with a file per slide.
        store: patch store to make or go on with.
        config: what made the source, and how it is read; fields given as keywords override its own.

    Returns:
        The store, the slides that are ok, the reasons of those in quarantine, and what was left out.

    Raises:
        InputError: the source cannot be read at all, or the store has other slides.
    """
    from milcore.ingestion.imports.import_cohort import import_source

    report = import_source(_uri("source", source), _store_uri(store), config)
    _log_notes(report.store.manifest())
    _log_quarantined(report.quarantined)
    return report


@with_settings(config=EncodeConfig, launch=LaunchConfig)
def encode(
    store: "StoreLike", encoder: str | None = None, *, config: EncodeConfig, launch: LaunchConfig
) -> EncodeReport:
    """Compute features/<name> of every slide with a frozen encoder.

    Slides that have them are left as they are.

    Args:
        store: patch store.
        encoder: the frozen encoder: a name, or what ``milcore encode --encoder`` takes; None: that of the config.
        config: the encoder and the name of its features; fields given as keywords override its own.
        launch: where to compute; fields likewise.

    Returns:
        Name and slides of the features.

    Raises:
        InputError: there is no such encoder.
        StoreError: slides have features of that name by another encoder.
    """
    from milcore.cluster.launch import encode_with
    from milcore.encoders.extraction.request import with_feature_name
    from milcore.store.store import PatchStore

    if encoder is not None:
        config = parse_config(EncodeConfig, config.model_dump(exclude_unset=True) | {"encoder": encoder})
    config, patch_store = with_feature_name(config), PatchStore(_store_uri(store))
    encoded = encode_with(patch_store.uri, config, launch)
    types: Counter[str] = Counter(slide.feature_type for slide in encoded if slide.feature_type is not None)
    slides, patches = [slide.slide_id for slide in encoded], sum(slide.patches for slide in encoded)
    return EncodeReport(patch_store, str(config.name), slides, patches, dict(types))


@with_settings(config=TrainConfig, split=SplitConfig, launch=LaunchConfig)
def train(  # noqa: PLR0913 - one keyword per kind of settings
    store: "StoreLike",
    run: "RunLike",
    *,
    sweep: "SweepLike | None" = None,
    config: TrainConfig,
    split: SplitConfig,
    launch: LaunchConfig,
) -> "Run":
    """Train attention-MIL on a store, once or in folds; the same run folder resumes.

    Args:
        store: patch store.
        run: run folder to make or go on with.
        sweep: a finished sweep whose best settings and split are taken; what is given here overrides them.
        config: the model and its training; fields given as keywords override its own.
        split: how patients are divided; fields likewise.
        launch: where to compute; fields likewise.

    Returns:
        The finished run.

    Raises:
        InputError: the folder holds another run, the split cannot be trained on, or the sweep is not finished.
        StoreError: slides lack what is to be trained on.
    """
    from milcore.cluster.launch import train_with
    from milcore.training.run import prepare_run
    from milcore.training.run_folder import Run

    if sweep is not None:
        best, splits_uri = _sweep(sweep).require_best(), _sweep(sweep).splits_uri
        given, divided = config.model_dump(exclude_unset=True), split.model_dump(exclude_unset=True)
        of_best = without_unread(best.model_dump(), [str(given.get("pooling", best.pooling))])
        config = parse_config(TrainConfig, of_best | given)
        split = parse_config(SplitConfig, {"splits": splits_uri} | divided)
    run_uri = _run_uri(run)
    prepare_run(_store_uri(store), run_uri, config, split)
    train_with(run_uri, launch)
    return Run(run_uri)


def download_model(run_uri: str, path: str) -> str:
    """Copy the published weights of a run to a local file; their URI."""
    from milcore.runtime import storage
    from milcore.training.run_files import read_file
    from milcore.training.run_folder import Run

    uri = Run(run_uri).model_uri
    storage.write_bytes(path, read_file(uri))
    return uri


def run_state(run_uri: str) -> str:
    """Digest of a run's published files and annotations; new while any is missing."""
    from milcore.training.run_folder import Run

    return Run(run_uri).state()


@with_settings(NOT_IN_SWEEP, train=TrainConfig, config=TuneConfig, split=SplitConfig, launch=LaunchConfig)
def tune(
    store: "StoreLike", out: "SweepLike", *, config: TuneConfig, split: SplitConfig, launch: LaunchConfig
) -> "Sweep":
    """Sweep pooling, learning rate and more on validation; the same sweep folder resumes.

    Args:
        store: patch store.
        out: sweep folder to make or go on with.
        config: the trials and the training they share; fields given as keywords override its own.
        train: that training; fields likewise.
        split: how patients are divided; fields likewise.
        launch: where to compute; fields likewise. ``workers`` are trials at a time; 0: as many as there is room for.

    Returns:
        The finished sweep.

    Raises:
        InputError: the folder holds another sweep, or the split has nothing to train or choose on.
        StoreError: slides lack what is to be trained on.
    """
    from milcore.cluster.launch import tune_with
    from milcore.runtime.progress import log_line
    from milcore.training.sweep import prepare_sweep

    for name in (name for name in NOT_IN_SWEEP if name in TrainConfig.model_fields):
        value, default = getattr(config.train, name), TrainConfig.model_fields[name].default
        if value != default:
            log_line(f"{name} {value!r} of train is not used: {NOT_IN_SWEEP[name]}")
    sweep = _sweep(out)
    prepare_sweep(_store_uri(store), sweep.uri, config, split)
    tune_with(sweep.uri, launch)
    return sweep


@with_settings(config=EvaluateConfig, annotations=AnnotationConfig)
def evaluate(
    run: "RunLike",
    *,
    sweep: "SweepLike | None" = None,
    compare_with: "RunLike | None" = None,
    config: EvaluateConfig,
    annotations: AnnotationConfig,
) -> "Evaluation":
    """Evaluate a run and write its predictions, metrics, attention, report and model card.

    Args:
        run: a finished run, of one model or of folds.
        sweep: the sweep whose best config this run took; its trials and verdict are shown.
        compare_with: a run of classes on the same slides, such as one split by patient where this one is split by site;
            the difference of AUROC on the bags that both left out is shown, with its interval.
        config: what is computed and written; fields given as keywords override its own.
        annotations: fields that are set here, or given as keywords, override those that ingestion recorded.

    Returns:
        Metrics, slides with their attention, and the URI of the report.

    Raises:
        InputError: the run is not finished, an annotation cannot be read, the manifest's labels are no classes of the
            run, or it has no bags in common with the run to compare with.
        StoreError: the store, the labels or the splits are not those the run was trained on.
    """
    from milcore.evaluation.evaluate import evaluate
    from milcore.evaluation.evaluation import Evaluation

    run_uri = _run_uri(run)
    evaluate(
        run_uri,
        baselines=config.baselines,
        sweep_uri=None if sweep is None else _sweep(sweep).uri,
        compare_with=None if compare_with is None else _run_uri(compare_with),
        attention_formats=tuple(name for name in ATTENTION_FORMATS if name in config.attention_formats),
        with_leave_one_out=config.with_leave_one_out,
        annotations=annotations,
        labels_from=config.labels_from,
        allow_program=config.allow_program,
        use_gpu=config.use_gpu,
    )
    return Evaluation(run_uri)


def download_evaluation(run_uri: str, report: str, model_card: str, attention: str) -> dict[str, str]:
    """Copy report, model card and attention overlays of an evaluated run to local paths.

    Args:
        run_uri: the run.
        report: file to write.
        model_card: file to write.
        attention: folder to write.

    Returns:
        Their URIs by ``report``, ``model_card`` and ``attention``.
    """
    from milcore.evaluation.evaluate import download_overlays
    from milcore.runtime import storage
    from milcore.training.run_files import read_file
    from milcore.training.run_folder import Run

    run = Run(run_uri)
    storage.write_bytes(report, read_file(run.report_uri))
    storage.write_bytes(model_card, read_file(run.model_card_uri))
    download_overlays(run_uri, attention)
    return {"report": run.report_uri, "model_card": run.model_card_uri, "attention": run.attention_uri}


@with_settings(config=PredictConfig)
def predict(  # noqa: PLR0913 - one keyword per option of the command
    run: "RunLike",
    slides: "Uri | Iterable[Uri]" = (),
    out: "Uri | None" = None,
    *,
    manifest: "Uri | None" = None,
    store: "StoreLike | None" = None,
    workers: int = 0,
    ray_address: str = "local",
    cluster_profile: str = "",
    config: PredictConfig,
) -> "Predictions":
    """Score new slides, or the features of a store, by a run.

    Slide files pass through the run's own ingestion and encoder settings. The same folder resumes; that of slides keeps
    every slide predicted into it.

    Args:
        run: a finished run.
        slides: paths or URIs of slides; none with a manifest or a store. The id of a file is its name without suffix.
        out: folder for predictions and attention; None keeps nothing on disk.
        manifest: in place of slides: CSV or Parquet with slide_id, uri; also patient_id, mpp.
        store: in place of slides: a patch store, ingested and encoded or imported, whose features are of the encoder
            that made the run's.
        workers: of a store: Ray workers; 0 computes in this process without Ray.
        ray_address: of a store: ``local``, ``rayjob``, http(s)://host:8265 or host:port of Ray.
        cluster_profile: YAML file that describes the clusters of rayjob; empty: the defaults.
        config: how slides are scored; fields given as keywords override its own.

    Returns:
        Predictions by slide id, and the reasons of slides that cannot be scored.

    Raises:
        InputError: not one of slides, manifest and store, or a setting of another of them.
        StoreError: the store's features are not known to be of the run's encoder, or slides lack them.
    """
    from milcore.evaluation.predict import predict as predict_files
    from milcore.evaluation.predict import predict_manifest
    from milcore.evaluation.predictions import Predictions
    from milcore.runtime import storage

    run_uri, files = _run_uri(run), _files(slides)
    if bool(files) + (manifest is not None) + (store is not None) != 1:
        raise InputError(
            f"predict: expected slides, a manifest or a store, got {len(files)} slides, manifest {manifest!r} and "
            f"store {store!r} beside RUN {run_uri!r} and OUT {out!r}; allowed: RUN SLIDE… OUT, RUN OUT --manifest FILE "
            "or RUN OUT --store URI; name one of them"
        )
    on_ray: dict[str, object] = {"workers": workers, "ray_address": ray_address, "cluster_profile": cluster_profile}
    launch = parse_config(LaunchConfig, {**on_ray, "use_gpu": config.use_gpu})
    _check_kind_of_prediction(config, launch, of_store=store is not None)
    if store is not None:
        score: Callable[..., dict[str, Any]] = partial(_predict_store, run_uri, _store_uri(store), launch)
    elif manifest is not None:
        score = partial(predict_manifest, run_uri, _uri("manifest", manifest))
    else:
        score = partial(predict_files, run_uri, files)
    if out is not None:
        folder = storage.absolute(_uri("out", out))
        predictions = Predictions(score(folder, config), folder)
    else:
        in_memory = config if store is not None else config.model_copy(update={"attention_formats": FORMATS_IN_MEMORY})
        with tempfile.TemporaryDirectory() as folder:
            predictions = Predictions(score(folder, in_memory), folder)
            if in_memory.attention_formats:
                predictions.load()
    _log_quarantined(predictions.quarantined)
    return predictions


def _check_kind_of_prediction(config: PredictConfig, launch: LaunchConfig, *, of_store: bool) -> None:
    """Refuse settings that slides or a store cannot have.

    Raises:
        InputError: there is one.
    """
    this, other = ("a store", "slides") if of_store else ("slides", "a store")
    names = ("default_mpp",) if of_store else ("features", "same_encoder", "workers", "ray_address", "cluster_profile")
    for name in names:
        settings: Config = launch if name in type(launch).model_fields else config
        value = getattr(settings, name)
        if value != type(settings).model_fields[name].default:
            raise InputError(f"{name}: expected none for {this}, got {value!r}; allowed: for {other}; leave it out")


def _predict_store(
    run_uri: str, store_uri: str, launch: LaunchConfig, out_uri: str, config: PredictConfig
) -> dict[str, Any]:
    """Score a store into a folder, and read what is there then."""
    from milcore.cluster.launch import predict_with
    from milcore.evaluation.predict_store import prepare_store_predictions, read_store_predictions

    prepare_store_predictions(run_uri, store_uri, out_uri, config)
    predict_with(out_uri, launch)
    return read_store_predictions(out_uri)


def _files(slides: "Uri | Iterable[Uri]") -> list[str]:
    """Texts of the paths or URIs of slides."""
    if not isinstance(slides, str | os.PathLike | Iterable):
        raise InputError(f"slides: expected paths or URIs, got {slides!r}; allowed: one, or several in a list")
    return [_uri("slides", each) for each in ([slides] if isinstance(slides, str | os.PathLike) else slides)]


def score_slides(  # noqa: PLR0913 - one keyword per parameter of the pipeline
    run_uri: str,
    slides: Sequence[str],
    out_uri: str,
    *,
    default_mpp: float | None,
    annotation_origin: str = "bounds",
    allow_program: bool = False,
    use_gpu: bool,
) -> str:
    """Score slides as ``predict`` does; the folder.

    Args:
        run_uri: a finished run.
        slides: URIs of slides.
        out_uri: folder for predictions and attention.
        default_mpp: um/px of slides that carry none; None: as the run's cohort has it.
        annotation_origin: corner that coordinates in the GeoJSON and OME-TIFF of attention begin at.
        allow_program: load an encoder that the run names and that is a program (TorchScript), which runs code of its
            author.
        use_gpu: compute on a CUDA device.

    Raises:
        InputError: no slide could be scored, or a setting is out of range.
    """
    scored = predict(
        run_uri,
        slides,
        out_uri,
        default_mpp=default_mpp,
        annotation_origin=annotation_origin,
        allow_program=allow_program,
        use_gpu=use_gpu,
    )
    if not scored:
        raise InputError(
            f"predict: expected slides that can be scored, got none of {len(slides)}; see the reasons above"
        )
    return out_uri


def finish_pipeline_run(run_uri: str, store_uri: str, ray_address: str, status: dict[str, Any]) -> None:
    """Free the clusters of a pipeline run and write ``status.json`` into its folder.

    Args:
        run_uri: run folder.
        store_uri: patch store.
        ray_address: as the steps have it; with ``rayjob``, clusters of the run named by PIPELINE_RUN_ID are deleted.
        status: how the steps ended; the step that failed, its line and its exit code are added to it.
    """
    from milcore.runtime import storage
    from milcore.runtime.step_failure import RUN_ID, final_status, read_failures, remove_failures
    from milcore.training.run_folder import Run

    try:
        if ray_address == "rayjob":
            from milcore.cluster.jobs.rayjob import connect_rayjobs, delete_run_jobs

            delete_run_jobs(connect_rayjobs(), os.environ[RUN_ID])
    finally:
        folders = [store_uri, run_uri]
        ended = final_status(status, read_failures(folders))
        storage.write_json(Run(run_uri).status_uri, {**ended, "run_id": os.environ.get(RUN_ID)})
    remove_failures(folders)


def pipeline_failure(run_uri: str, out_uri: str | None, run_id: str) -> tuple[str, str, int] | None:
    """Step, line and exit code of a pipeline run that has failed.

    None where they are not known.

    Args:
        run_uri: run folder, whose ``status.json`` is read.
        out_uri: folder of predictions, for a pipeline that has it.
        run_id: of the run.
    """
    from milcore.runtime import storage
    from milcore.runtime.step_failure import read_failures
    from milcore.training.run_folder import Run

    try:
        if out_uri is not None:
            failures = read_failures([out_uri], run_id)
            return (failures[0].step, failures[0].line, failures[0].exit_code) if failures else None
        status = storage.read_json(Run(run_uri).status_uri)
    except (*storage.IO_ERRORS, ValueError):
        return None
    if status.get("run_id") != run_id or "exit_code" not in status:
        return None
    return str(status["step"]), str(status["error"]), int(status["exit_code"])
