"""The verbs of milcore, for the command line, the components and notebooks.

Each takes URIs and the config classes of ``milcore.config``, keeps its result in storage and does only what is missing
there. Imports are inside functions, so that naming a verb costs nothing: torch and Ray are imported where they compute.
"""

# ruff: noqa: PLC0415 - see above

import contextlib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from milcore.config import (
    ATTENTION_FORMATS,
    AnnotationConfig,
    AnnotationOrigin,
    AttentionFormat,
    EncodeConfig,
    ImportConfig,
    IngestConfig,
    LabelSource,
    LaunchConfig,
    PipelineSettings,
    RunSpec,
    SplitConfig,
    TrainConfig,
    TuneConfig,
    parse_config,
)
from milcore.errors import InputError

if TYPE_CHECKING:
    from milcore.cohort.manifest import Manifest
    from milcore.training.sweep import SweepVerdict


class EncodeReport(NamedTuple):
    """Features of a store: name, slides that have them, patches in all.

    ``types`` counts the slides by the type in which their features are stored; empty where a job has encoded them.
    """

    name: str
    slides: list[str]
    patches: int
    types: dict[str, int]


class TrainReport(NamedTuple):
    """A finished run.

    ``out_of_fold`` holds the figures of the slides that folds left out; None for a run of one model.
    """

    run_uri: str
    spec: RunSpec
    out_of_fold: dict[str, Any] | None

    @property
    def line(self) -> str:
        """The run, and for folds their pooled AUROC, in one line."""
        from milcore.training.cross_validation import out_of_fold_line

        return f"trained {self.run_uri}" + (f": {out_of_fold_line(self.out_of_fold)}" if self.out_of_fold else "")


class TuneReport(NamedTuple):
    """A finished sweep: the settings it chose, and how sure the choice is."""

    out_uri: str
    best: TrainConfig
    verdict: "SweepVerdict"


def synthesise(out: str, slides: int, seed: int, workers: int) -> tuple[list[str], str]:
    """Write a cohort of synthetic slides; their ids, and the URI of its manifest.

    Args:
        out: folder of the cohort.
        slides: how many.
        seed: the same seed gives the same bytes.
        workers: processes on this machine.
    """
    from milcore.cohort.synthetic.generate import synthesise
    from milcore.runtime import storage
    from milcore.runtime.progress import track

    slide_ids = list(track(synthesise(out, slides, seed, workers), "synth", slides))
    return slide_ids, storage.join(storage.absolute(out), "manifest.csv")


def check_manifest(manifest_uri: str, positive: str | None) -> None:
    """Read a manifest and refuse a bad one.

    Raises:
        InputError: every bad row.
    """
    from milcore.cohort.manifest import read_manifest

    read_manifest(manifest_uri, positive)


def ingest(  # noqa: PLR0913 - one keyword per option of the command
    manifest_uri: str,
    store_uri: str,
    config: IngestConfig,
    *,
    positive: str | None = None,
    annotations: AnnotationConfig | None = None,
    workers: int = 0,
    ray_address: str | None = None,
) -> dict[str, Any]:
    """Cut the slides of a manifest into patches.

    A bad slide is quarantined with its reason, the others go on.

    Args:
        manifest_uri: CSV or Parquet with slide_id, uri, label and optional columns.
        store_uri: patch store to make or go on with.
        config: how a slide becomes patches.
        positive: class name that counts as positive; None: the later by name.
        annotations: how they are read; None: by the defaults.
        workers: processes on this machine, or Ray workers; 0 works in this process.
        ray_address: ``local`` or host:port of a Ray cluster to deal slides to.

    Returns:
        ``ok`` ids, ``quarantined`` ids with reasons, counts, and ``page``, the URI of the cohort's overview.

    Raises:
        InputError: every bad row of the manifest, or every annotation that cannot be read.
    """
    from milcore.ingestion.annotations import log_outside_tissue
    from milcore.ingestion.cohort import ingest as ingest_cohort
    from milcore.ingestion.cohort import ingest_counts, plan_cohort
    from milcore.ingestion.overview import write_cohort_page
    from milcore.runtime.progress import track
    from milcore.store.store import PatchStore

    cohort = plan_cohort(manifest_uri, store_uri, positive, annotations)
    _log_notes(cohort)
    with _slide_map(ray_address, workers) as map_slides:
        outcomes = ingest_cohort(store_uri, config, workers, map_slides=map_slides)
        counts = ingest_counts(track(outcomes, "ingest", len(cohort.slides)))
    _log_quarantined(counts)
    log_outside_tissue(PatchStore(store_uri))
    return counts | {"page": write_cohort_page(store_uri)}


def _log_notes(manifest: "Manifest") -> None:
    from milcore.cohort.manifest_notes import manifest_notes
    from milcore.runtime.progress import log_line

    for note in manifest_notes(manifest):
        log_line(note)


def _log_quarantined(summary: Mapping[str, Any]) -> None:
    from milcore.runtime.progress import log_line

    for slide_id, reason in summary["quarantined"].items():
        log_line(f"quarantined {slide_id}: {reason}")


@contextlib.contextmanager
def _slide_map(ray_address: str | None, workers: int) -> Iterator[Callable[..., Any] | None]:
    """Ray's map for as long as the context; None where no cluster is named."""
    if ray_address is None:
        yield None
        return
    from milcore.cluster.workers.connect import connected
    from milcore.cluster.workers.map import map_on_ray

    launch = parse_config(LaunchConfig, {"ray_address": ray_address, "workers": max(1, workers)})
    with connected(launch):
        yield partial(map_on_ray, launch=launch)


def plan_ingestion(
    manifest_uri: str,
    store_uri: str,
    positive: str | None,
    partitions: int,
    annotations: AnnotationConfig | None = None,
) -> list[str]:
    """Make a manifest the store's cohort and divide it for a fan-out.

    Partitions are of about equal work, by the sizes of the slides.

    Args:
        manifest_uri: CSV or Parquet with slide_id, uri, label and optional columns.
        store_uri: patch store to make or go on with.
        positive: class name that counts as positive; None: the later by name.
        partitions: how many at most; never more than slides.
        annotations: how they are read; None: by the defaults.

    Returns:
        The partitions as ``i/n``.

    Raises:
        InputError: every bad row of the manifest, or every annotation that cannot be read.
    """
    from milcore.ingestion.cohort import plan_cohort
    from milcore.ingestion.partition import write_partitions

    cohort = plan_cohort(manifest_uri, store_uri, positive, annotations)
    _log_notes(cohort)
    count = max(1, min(partitions, len(cohort.slides)))
    write_partitions(store_uri, count)
    return [f"{index}/{count}" for index in range(count)]


def ingest_partition(store_uri: str, partition: str, config: IngestConfig, workers: int) -> dict[str, Any]:
    """Ingest one partition of a planned cohort.

    Args:
        store_uri: store that ``plan_ingestion`` gave its cohort.
        partition: ``i/n``, one of those it returned.
        config: how a slide becomes patches.
        workers: processes on this machine; 0 works in this process.

    Returns:
        ``ok`` ids, ``quarantined`` ids with reasons, and counts.
    """
    from milcore.ingestion.cohort import ingest as ingest_cohort
    from milcore.ingestion.cohort import ingest_counts
    from milcore.ingestion.partition import read_partition
    from milcore.runtime.progress import track
    from milcore.store.store import PatchStore

    index, count = (int(part) for part in partition.split("/"))
    slides = len(read_partition(PatchStore(store_uri), index, count))
    outcomes = ingest_cohort(store_uri, config, workers, (index, count))
    return ingest_counts(track(outcomes, f"ingest {partition}", slides))


def gather_ingestion(store_uri: str, counts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Join the counts of all partitions, after the fan-in, and write the cohort's overview.

    Args:
        store_uri: patch store.
        counts: what ``ingest_partition`` returned for each.

    Returns:
        The same for the whole cohort.

    Raises:
        MILError: a slide of the cohort stands in none of them.
        InputError: no slide is ok.
    """
    from milcore.ingestion.annotations import log_outside_tissue
    from milcore.ingestion.cohort import join_counts
    from milcore.ingestion.overview import write_cohort_page
    from milcore.runtime.progress import log_line
    from milcore.store.store import PatchStore

    log_line(f"cohort: {write_cohort_page(store_uri)}")
    summary = join_counts(store_uri, counts)
    _log_quarantined(summary)
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


def sweep_uri(run_uri: str) -> str:
    """The folder of the sweep that chooses a pipeline run's settings."""
    from milcore.training.run_folder import Run

    return Run(run_uri).sweep_uri


def store_state(store_uri: str) -> str:
    """Digest of a store's slides and patches; a new one while any is missing."""
    from milcore.ingestion.fingerprint import store_state

    return store_state(store_uri)


def import_cohort(source_uri: str, store_uri: str, config: ImportConfig) -> dict[str, Any]:
    """Make a store of features or patches made elsewhere.

    A bad slide is quarantined with its reason.

    Args:
        source_uri: a file, or a folder with a file per slide.
        store_uri: patch store to make or go on with.
        config: what made the source, and how it is read.

    Returns:
        ``ok`` ids, ``quarantined`` ids with reasons, ``without_picture``, ``unlabelled`` files, and counts.
    """
    from milcore.ingestion.imports.import_cohort import import_source
    from milcore.store.store import PatchStore

    summary = import_source(source_uri, store_uri, config)
    _log_notes(PatchStore(store_uri).manifest())
    _log_quarantined(summary)
    return summary


def encode(store_uri: str, config: EncodeConfig, launch: LaunchConfig) -> EncodeReport:
    """Compute features/<name> of every slide with a frozen encoder.

    Slides that have them are left as they are.

    Args:
        store_uri: patch store.
        config: the encoder and the name of its features.
        launch: where to compute.
    """
    from milcore.cluster.launch import encode_with
    from milcore.encoders.extraction.encode import with_feature_name

    config = with_feature_name(config)
    encoded = encode_with(store_uri, config, launch)
    types: Counter[str] = Counter(slide.feature_type for slide in encoded if slide.feature_type is not None)
    return EncodeReport(str(config.name), [s.slide_id for s in encoded], sum(s.patches for s in encoded), dict(types))


def train(
    store_uri: str, run_uri: str, config: TrainConfig, splits: SplitConfig | str, launch: LaunchConfig
) -> TrainReport:
    """Train attention-MIL on a store, once or in folds; the same run folder resumes.

    Args:
        store_uri: patch store.
        run_uri: run folder to make or go on with.
        config: the model and its training.
        splits: how patients are divided, or the URI of a splits.parquet to adopt.
        launch: where to compute.

    Raises:
        InputError: the folder holds another run, or the split cannot be trained on.
        StoreError: slides lack what is to be trained on.
    """
    from milcore.cluster.launch import train_with
    from milcore.training.run import prepare_run
    from milcore.training.run_folder import Run

    spec = prepare_run(store_uri, run_uri, config, _split_config(splits))
    train_with(run_uri, launch)
    return TrainReport(run_uri, spec, Run(run_uri).out_of_fold() if spec.folds else None)


def _split_config(splits: SplitConfig | str) -> SplitConfig:
    return SplitConfig(splits=splits) if isinstance(splits, str) else splits


def train_best(store_uri: str, run_uri: str, sweep_uri: str, launch: LaunchConfig) -> TrainReport:
    """Train the settings that a sweep chose, on the sweep's split.

    Args:
        store_uri: patch store.
        run_uri: run folder to make or go on with.
        sweep_uri: a finished sweep.
        launch: where to compute.

    Raises:
        InputError: the sweep is not finished.
    """
    from milcore.training.sweep import Sweep

    sweep = Sweep(sweep_uri)
    return train(store_uri, run_uri, sweep.require_best(), sweep.splits_uri, launch)


def download_model(run_uri: str, path: str) -> str:
    """Copy the published weights of a run to a local file; their URI."""
    from milcore.runtime import storage
    from milcore.training.run_files import read_file
    from milcore.training.run_folder import Run

    uri = Run(run_uri).model_uri
    storage.write_bytes(path, read_file(uri))
    return uri


def run_state(run_uri: str) -> str:
    """Digest of a run's published files; a new one while any is missing."""
    from milcore.training.run_folder import Run

    return Run(run_uri).state()


def tune(
    store_uri: str, out_uri: str, config: TuneConfig, splits: SplitConfig | str, launch: LaunchConfig
) -> TuneReport:
    """Sweep pooling, learning rate and more on validation; the same sweep folder resumes.

    Args:
        store_uri: patch store.
        out_uri: sweep folder to make or go on with.
        config: the trials and the training they share.
        splits: how patients are divided, or the URI of a splits.parquet to adopt.
        launch: where to compute.

    Raises:
        InputError: the folder holds another sweep, or the split has nothing to train or choose on.
        StoreError: slides lack what is to be trained on.
    """
    from milcore.cluster.launch import tune_with
    from milcore.training.sweep import Sweep, prepare_sweep

    prepare_sweep(store_uri, out_uri, config, _split_config(splits))
    best = tune_with(out_uri, launch)
    return TuneReport(out_uri, best, Sweep(out_uri).verdict())


def evaluate(  # noqa: PLR0913 - one keyword per option of the command
    run_uri: str,
    *,
    baselines: bool = True,
    sweep_uri: str | None = None,
    attention_formats: Sequence[AttentionFormat] = ATTENTION_FORMATS,
    with_leave_one_out: bool = False,
    annotations: AnnotationConfig | None = None,
    labels_from: LabelSource | None = None,
    allow_program: bool = False,
    use_gpu: bool = False,
) -> dict[str, Any]:
    """Evaluate a run and write its predictions, metrics, attention, report and model card.

    Args:
        run_uri: a finished run, of one model or of folds.
        baselines: also train and show the rows the model has to beat.
        sweep_uri: the sweep whose best config this run took; its trials and verdict are shown.
        attention_formats: the forms of each test slide's attention.
        with_leave_one_out: also the change of the log-odds without each instance; seconds a slide.
        annotations: fields that are set here override those that ingestion recorded.
        labels_from: ``run`` or ``manifest``, where the store's manifest has other labels or patients than the run was
            trained on; None refuses that.
        allow_program: load an encoder that the run names and that is a program (TorchScript), which runs code of its
            author.
        use_gpu: compute on a CUDA device.

    Returns:
        The content of ``metrics.json``.

    Raises:
        InputError: the run is not finished, an annotation cannot be read, or the manifest's labels are no classes of
            the run.
        StoreError: the store, the labels or the splits are not those the run was trained on.
    """
    from milcore.evaluation.evaluate import evaluate

    return evaluate(
        run_uri,
        baselines=baselines,
        sweep_uri=sweep_uri,
        attention_formats=attention_formats,
        with_leave_one_out=with_leave_one_out,
        annotations=annotations,
        labels_from=labels_from,
        allow_program=allow_program,
        use_gpu=use_gpu,
    )


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


def predict(  # noqa: PLR0913 - one keyword per option of the command
    run_uri: str,
    slides: Sequence[str],
    out_uri: str,
    *,
    manifest_uri: str | None = None,
    default_mpp: float | None = None,
    annotation_origin: AnnotationOrigin = "bounds",
    allow_program: bool = False,
    use_gpu: bool = False,
) -> dict[str, Any]:
    """Score new slides through a run's own ingestion and encoder settings.

    The same folder resumes, and keeps every slide predicted into it.

    Args:
        run_uri: a finished run.
        slides: URIs of slides; empty with a manifest.
        out_uri: folder for predictions and attention.
        manifest_uri: in place of slides: CSV or Parquet with slide_id, uri; also patient_id, mpp.
        default_mpp: um/px of slides that carry none; None: as the run's cohort has it.
        annotation_origin: corner that coordinates in the GeoJSON and OME-TIFF of attention begin at.
        allow_program: load an encoder that the run names and that is a program (TorchScript), which runs code of its
            author.
        use_gpu: compute on a CUDA device.

    Returns:
        ``ok`` and ``quarantined`` slides of this call.

    Raises:
        InputError: slides and a manifest, or neither of them.
    """
    from milcore.evaluation.predict import predict as predict_files
    from milcore.evaluation.predict import predict_manifest

    if bool(slides) == (manifest_uri is not None):
        raise InputError(
            f"predict: expected slides or a manifest, got {len(slides)} slides and manifest {manifest_uri!r} beside "
            f"RUN {run_uri!r} and OUT {out_uri!r}; allowed: RUN SLIDE… OUT or RUN OUT --manifest FILE; name slides "
            "or a manifest"
        )
    score: Callable[..., dict[str, Any]] = (
        partial(predict_files, run_uri, slides)
        if manifest_uri is None
        else partial(predict_manifest, run_uri, manifest_uri)
    )
    summary = score(
        out_uri, default_mpp, annotation_origin=annotation_origin, allow_program=allow_program, use_gpu=use_gpu
    )
    _log_quarantined(summary)
    return summary


def score_slides(  # noqa: PLR0913 - one keyword per parameter of the pipeline
    run_uri: str,
    slides: Sequence[str],
    out_uri: str,
    *,
    default_mpp: float | None,
    allow_program: bool = False,
    use_gpu: bool,
) -> str:
    """Score slides as ``predict`` does, listing those in quarantine; the folder.

    Args:
        run_uri: a finished run.
        slides: URIs of slides.
        out_uri: folder for predictions and attention.
        default_mpp: um/px of slides that carry none; None: as the run's cohort has it.
        allow_program: load an encoder that the run names and that is a program (TorchScript), which runs code of its
            author.
        use_gpu: compute on a CUDA device.

    Raises:
        InputError: no slide could be scored.
    """
    summary = predict(run_uri, slides, out_uri, default_mpp=default_mpp, allow_program=allow_program, use_gpu=use_gpu)
    if not summary["ok"]:
        raise InputError(
            f"predict: expected slides that can be scored, got none of {len(slides)}; see the reasons above"
        )
    return out_uri


def finish_pipeline_run(run_uri: str, ray_address: str, status: dict[str, Any]) -> None:
    """Free the clusters of a pipeline run and write ``status.json`` into its folder.

    Args:
        run_uri: run folder.
        ray_address: as the steps have it; with ``rayjob``, clusters of the run named by PIPELINE_RUN_ID are deleted.
        status: how the steps ended.
    """
    from milcore.runtime import storage
    from milcore.training.run_folder import Run

    if ray_address == "rayjob":
        from milcore.cluster.jobs.rayjob import connect_rayjobs, delete_run_jobs

        delete_run_jobs(connect_rayjobs(), os.environ["PIPELINE_RUN_ID"])
    storage.write_json(Run(run_uri).status_uri, status)
