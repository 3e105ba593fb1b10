"""The step that runs however the others ended."""

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def finish(run_uri: str, store_uri: str, ray_address: str, status: dsl.PipelineTaskFinalStatus) -> None:
    """Free the run's clusters and write status.json into the run folder.

    Args:
        run_uri: the run folder.
        store_uri: the patch store.
        ray_address: as the steps have it; with rayjob, clusters of this run are deleted.
        status: how the steps ended.
    """
    from milcore import api

    ended = {"state": status.state, "error": status.error_message, "run": status.pipeline_job_resource_name}
    with api.one_line_errors():
        api.finish_pipeline_run(run_uri, store_uri, ray_address, ended)
