"""The step before the fan-out."""

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def plan(manifest: str, store_uri: str, shards: int, positive: str) -> list[str]:
    """Check the manifest, make it the store's cohort and divide it by the sizes of its slides.

    Args:
        manifest: CSV or Parquet with slide_id, uri, label and optional columns.
        store_uri: the patch store.
        shards: how many ingest steps share the slides.
        positive: class name that counts as positive; empty: the later by name.

    Returns:
        The shards as i/n.
    """
    from milcore.ingestion.cohort import plan_cohort
    from milcore.ingestion.partition import write_partition

    count = max(1, min(shards, len(plan_cohort(manifest, store_uri, positive or None).slides)))
    write_partition(store_uri, count)
    return [f"{index}/{count}" for index in range(count)]


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def survey(store_uri: str) -> str:
    """See what lies in storage now, so that Kubeflow reuses earlier results only where they still stand.

    Args:
        store_uri: the patch store, planned.

    Returns:
        Digest of the slides and of the patches made of them; one never seen before while anything is missing.
    """
    from milcore.ingestion.fingerprint import store_state

    return store_state(store_uri)
