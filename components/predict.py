"""New slides through a finished run."""

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def predict(
    run_uri: str,
    slides: list[str],
    out_uri: str,
    default_mpp: float,
    annotation_origin: str,
    allow_program: bool,
    use_gpu: bool,
) -> str:
    """Score slides through the run's own ingestion and encoder settings.

    A bad slide is quarantined with its reason.

    Args:
        run_uri: a finished run.
        slides: paths or s3:// URIs of slides.
        out_uri: folder for predictions and attention.
        default_mpp: um/px assumed for a slide that carries none; 0: as the run's cohort has it.
        annotation_origin: corner that GeoJSON and OME-TIFF of attention count px from, bounds or slide.
        allow_program: load an encoder that the run names and that is a TorchScript program.
        use_gpu: compute on a GPU of the step.

    Returns:
        The folder.
    """
    from milcore import api

    with api.pipeline_step("predict", out_uri):
        return api.score_slides(
            run_uri,
            slides,
            out_uri,
            default_mpp=default_mpp or None,
            annotation_origin=annotation_origin,
            allow_program=allow_program,
            use_gpu=use_gpu,
        )
