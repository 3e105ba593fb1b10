"""The step that runs however the others ended."""

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def finish(run_uri: str, ray_address: str, status: dsl.PipelineTaskFinalStatus) -> None:
    """Free what the run still holds on the cluster and write status.json into the run folder.

    Args:
        run_uri: the run folder.
        ray_address: as the steps have it; with rayjob, clusters of this run are deleted.
        status: how the steps ended.
    """
    import os

    from milcore.runtime.storage import join, write_json

    if ray_address == "rayjob":
        from milcore.cluster.jobs.rayjob import free_run, jobs_here

        free_run(jobs_here(), os.environ["PIPELINE_RUN_ID"])
    said = {"state": status.state, "error": status.error_message, "run": status.pipeline_job_resource_name}
    write_json(join(run_uri, "status.json"), said)
