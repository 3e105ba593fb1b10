"""Evaluation of a finished run."""

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def evaluate(
    run_uri: str,
    sweep_uri: str,
    baselines: bool,
    state: str,  # noqa: ARG001 - Kubeflow compares it with earlier ones
    metrics: dsl.Output[dsl.Metrics],
    classification: dsl.Output[dsl.ClassificationMetrics],
    report: dsl.Output[dsl.HTML],
    model_card: dsl.Output[dsl.Markdown],
    attention: dsl.Output[dsl.Dataset],
) -> str:
    """Predict, measure on the untouched test split, draw attention and write the report.

    Args:
        run_uri: the finished run.
        sweep_uri: the sweep whose settings it took.
        baselines: also train and show what the model has to beat.
        state: digest of the run; an equal one lets Kubeflow reuse this step's result.
        metrics: of the test split.
        classification: ROC curve and confusion matrix of the test split; empty for survival.
        report: the HTML report.
        model_card: what the model is, and is not, for.
        attention: index and overlays of the test slides.

    Returns:
        The report's URI.
    """
    from milcore import api

    with api.pipeline_step("evaluate", run_uri):
        # the encoder is the one that the settings of this pipeline named
        evaluation = api.evaluate(run_uri, baselines=baselines, sweep=sweep_uri, allow_program=True)
        uris = api.download_evaluation(run_uri, report.path, model_card.path, attention.path)
    content = evaluation.as_dict()
    for name, value in content.items():
        if isinstance(value, float):
            metrics.log_metric(name, value)
    if "confusion" in content:
        classification.log_roc_curve(*evaluation.roc)
        classification.log_confusion_matrix(list(evaluation.classes), evaluation.confusion)
    for output, name in ((report, "report"), (model_card, "model_card"), (attention, "attention")):
        output.metadata["uri"] = uris[name]
    return uris["report"]
