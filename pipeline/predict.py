"""The pipeline of one step that scores new slides with a finished run."""

from components.predict import predict as predict_slides
from components.sizes import Size
from pipeline.steps import pipeline, step


@pipeline(name="attention-mil-predict", display_name="Attention MIL: score new slides")
def predict(
    run_uri: str,
    slides: list[str],
    out_uri: str,
    default_mpp: float = 0.0,
    annotation_origin: str = "bounds",
    allow_program: bool = False,
    use_gpu: bool = False,
    step_cpus: str = "2",
    step_memory: str = "8Gi",
    step_gpus: str = "0",
) -> str:
    """Score new slides by a finished run.

    Through its own ingestion and encoder settings. Research use only.

    Args:
        run_uri: a finished run.
        slides: paths or s3:// URIs of slides.
        out_uri: folder for predictions and attention.
        default_mpp: um/px assumed for a slide that carries none; 0: as the run's cohort has it.
        annotation_origin: corner that GeoJSON and OME-TIFF of attention count px from, bounds or slide.
        allow_program: load an encoder that the run names and that is a TorchScript program.
        use_gpu: compute on a GPU of the step.
        step_cpus: CPUs of the step.
        step_memory: memory of the step.
        step_gpus: GPUs of the step; give 1 with use_gpu.

    Returns:
        The folder.
    """
    scored = predict_slides(
        run_uri=run_uri,
        slides=slides,
        out_uri=out_uri,
        default_mpp=default_mpp,
        annotation_origin=annotation_origin,
        allow_program=allow_program,
        use_gpu=use_gpu,
    )
    output: str = step(scored, Size(step_cpus, step_cpus, step_memory, step_memory, step_gpus)).output
    return output
