"""Slides to patches, one shard of the cohort a step, and the step after the fan-in."""

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def ingest(
    store_uri: str,
    shard: str,
    state: str,
    mpp: float,
    patch_size: int,
    stride: int,
    border: str,
    default_mpp: float,
    reader: str,
    codec: str,
    jpeg_quality: int,
    min_tissue: float,
    max_unreadable: int,
    stain_normalisation: str,
    workers: int,
) -> str:
    """Cut the slides of a shard into patches; a bad slide is quarantined and never fails the step.

    Args:
        store_uri: the patch store, planned.
        shard: ``i/n``: the i-th of the n shares the planning step wrote.
        state: digest of slides and store; an equal one lets Kubeflow reuse this step's result.
        mpp: target resolution in um/px.
        patch_size: patch edge in px at the target mpp.
        stride: px at the target mpp from patch to patch; 0: patch_size.
        border: patches over the slide's edge: drop, or pad with white.
        default_mpp: um/px assumed for a slide that carries none; 0: such a slide is quarantined.
        reader: what opens slides: auto, tiff, openslide or flat.
        codec: how a patch is stored.
        jpeg_quality: 1 to 100.
        min_tissue: smallest share of a tile's area that must be tissue.
        max_unreadable: unreadable tiles under tissue that a slide may have.
        stain_normalisation: none, or macenko for H&E.
        workers: processes.

    Returns:
        Ids of the slides that are ok, reasons of those that are not, and counts, as JSON.
    """
    settings = {**locals(), "default_mpp": default_mpp or None}
    import json

    from milcore.config import IngestConfig, pick
    from milcore.ingestion.cohort import ingest as ingest_cohort
    from milcore.ingestion.cohort import ingest_counts
    from milcore.ingestion.partition import read_partition
    from milcore.runtime.progress import track
    from milcore.store.store import PatchStore

    index, count = (int(part) for part in shard.split("/"))
    total = len(read_partition(PatchStore(store_uri), index, count))
    outcomes = ingest_cohort(store_uri, pick(IngestConfig, settings), workers, (index, count))
    return json.dumps(ingest_counts(track(outcomes, f"ingest {shard}", total)))


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def gather(store_uri: str, outcomes: list[str]) -> str:
    """Account for every slide of the cohort, write its page; fails when none is ok.

    Args:
        store_uri: the patch store.
        outcomes: what each ingest step returned.

    Returns:
        The outcomes of all slides as one JSON object.
    """
    import json

    from milcore.ingestion.cohort import account
    from milcore.ingestion.overview import write_cohort_page
    from milcore.runtime.progress import say

    say(f"cohort: {write_cohort_page(store_uri)}")
    summary = account(store_uri, [json.loads(outcome) for outcome in outcomes])
    for slide_id, reason in summary["quarantined"].items():
        say(f"quarantined {slide_id}: {reason}")
    return json.dumps(summary)
