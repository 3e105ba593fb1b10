"""Cases of Kubeflow Pipelines: three pipelines, caching, artifacts, failure, retry, Terminate, recurrence."""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.conformance.case import Clock, expect
from tests.conformance.kubeflow import RUN_S, Kubeflow, own_lines
from tests.conformance.step import RUN_S as START_S
from tests.pipeline.test_pods import compiled, pods_of

MAIN, SWEEP, PREDICT = "attention-mil", "attention-mil-sweep", "attention-mil-predict"
PIPELINES = (MAIN, SWEEP, PREDICT)
PROFILE = ("--ray-address", "rayjob", "--cluster-profile", "/etc/milcore/profile.yaml")
SHORT = (
    "--poolings", "max,gated_attention", "--trials", "2", "--epochs", "10", "--workers", "2",
    "--settings", '{"train": {"hidden": 64, "attention_hidden": 32}}',
)  # fmt: skip
PARTITIONS = 2
# of a run in which no slide is missing: one ingest step; what Kubeflow's cache leaves out is below
WITHOUT_CACHE = pods_of(compiled("attention_mil"), 1)
PODS_WITHOUT_CACHE = WITHOUT_CACHE.drivers + WITHOUT_CACHE.steps
SLIDE = "slides/slide-0000.tiff"
STEP_POD = "system-container-impl"  # as Kubeflow names the pods of steps; those of drivers have another name
SECONDS_BETWEEN_RUNS = 60


def _main(kubeflow: Kubeflow, run: str, manifest: str = "cohort/manifest.csv") -> tuple[str, ...]:
    """Arguments of the main pipeline."""
    uri = kubeflow.cluster.uri
    places = ("--manifest", uri(manifest), "--store-uri", uri("kfp/store"), "--run-uri", uri("kfp", run))
    return (*places, "--partitions", str(PARTITIONS), *SHORT, *PROFILE)


def compile_all(kubeflow: Kubeflow, clock: Clock) -> str:
    with tempfile.TemporaryDirectory() as folder:
        for name in PIPELINES:
            _compile(kubeflow, name, Path(folder))
            clock.step(name)
    return f"{len(PIPELINES)} files that name the image"


def _compile(kubeflow: Kubeflow, name: str, folder: Path) -> str:
    """File of a pipeline that names the image."""
    file, image = folder / f"{name}.yaml", kubeflow.cluster.settings.image
    ended = kubeflow.pipeline("compile", "--pipeline", name, "--image", image, "--out", str(file))
    expect(ended.returncode == 0 and image in file.read_text(), f"{name}: {ended.stderr[-300:]}")
    return str(file)


def installation(kubeflow: Kubeflow, clock: Clock) -> str:
    seen = kubeflow.install()
    clock.step("set up")
    return seen


def main_pipeline(kubeflow: Kubeflow, clock: Clock) -> str:
    return _follow(kubeflow, clock, "main", *_main(kubeflow, "run"))


def sweep_pipeline(kubeflow: Kubeflow, clock: Clock) -> str:
    uri = kubeflow.cluster.uri
    places = ("--pipeline", SWEEP, "--store-uri", uri("kfp/store"), "--run-uri", uri("kfp/sweep"))
    return _follow(kubeflow, clock, "sweep", *places, *SHORT, *PROFILE)


def predict_pipeline(kubeflow: Kubeflow, clock: Clock) -> str:
    uri = kubeflow.cluster.uri
    places = ("--run-uri", uri("kfp/run"), "--slides", uri("cohort", SLIDE), "--out-uri", uri("kfp/predictions"))
    return _follow(kubeflow, clock, "predict", "--pipeline", PREDICT, *places)


def _follow(kubeflow: Kubeflow, clock: Clock, name: str, *arguments: str) -> str:
    """Submit a run and follow it to its end."""
    ended = kubeflow.submit(name, *arguments, wait_s=RUN_S)
    clock.step("ended")
    states = own_lines(ended.stdout)[1:]
    expect(ended.returncode == 0 and states[-1:] == ["SUCCEEDED"], f"{' '.join(states)}: {ended.stderr[-300:]}")
    return " ".join(states)


def caching(kubeflow: Kubeflow, clock: Clock) -> str:
    """The same run again: Kubeflow reuses ingest and evaluate, whose pods are left out."""
    seen = _follow(kubeflow, clock, "again", *_main(kubeflow, "run"))
    pods = len(kubeflow.pods(kubeflow.runs["again"]))
    expect(0 < pods < PODS_WITHOUT_CACHE, f"{seen}, {pods} pods")
    return f"{seen}, {pods} pods of {PODS_WITHOUT_CACHE} without the cache"


def artifacts(kubeflow: Kubeflow, clock: Clock) -> str:
    """Report and model card are among the run's artifacts, and its metrics in the run folder."""
    folder = f"{kubeflow.artifacts}/{MAIN}/{kubeflow.runs['main']}"
    sizes = json.loads(
        kubeflow.read("artifacts", f"{{u: len(storage.read_bytes(u)) for u in storage.files('{folder}')}}")
    )
    clock.step("artifacts")
    names = {uri.rpartition("/")[2]: size for uri, size in sizes.items()}
    expect(names.get("report") and names.get("model_card"), f"{sorted(names)} below {folder}")
    metrics = json.loads(
        kubeflow.read("metrics", f"storage.read_json('{kubeflow.cluster.uri('kfp/run/metrics.json')}')")
    )
    clock.step("metrics")
    expect("auroc" in metrics, f"metrics {sorted(metrics)}")
    return f"report {names['report']} bytes, model card {names['model_card']} bytes, {len(metrics)} metrics"


def failing_step(kubeflow: Kubeflow, clock: Clock) -> str:
    """A manifest that is not there: the run fails, and its status names step and line."""
    ended = kubeflow.submit("failing", *_main(kubeflow, "failing", "no/manifest.csv"), wait_s=RUN_S)
    clock.step("failed")
    expect(ended.returncode != 0, f"exit code 0: {ended.stdout[-300:]}")
    uri = kubeflow.cluster.uri("kfp/failing/status.json")
    status = json.loads(kubeflow.read("status", f"storage.read_json('{uri}')"))
    expect((status["state"], status.get("step")) == ("FAILED", "plan"), f"{status}")
    expect("manifest" in f"{status['error']}", f"{status}")
    return f"step plan: {status['error']}"


def retry(kubeflow: Kubeflow, clock: Clock) -> str:
    """A step's pod is killed: Kubeflow makes another, and the run ends well."""
    kubeflow.submit("retry", *_main(kubeflow, "retry"))
    run_id = kubeflow.runs["retry"]
    pod = kubeflow.cluster.until(lambda: _running_step(kubeflow, run_id), START_S, "a running pod of a step")
    clock.step("running")
    place = kubeflow.place
    place.delete(place.api.of_namespace("pods", pod["metadata"]["name"]), gracePeriodSeconds="0")
    state = kubeflow.end(run_id)
    clock.step("ended")
    expect(state == "SUCCEEDED", f"{state} after {pod['metadata']['name']} was killed")
    return f"{state} after {pod['metadata']['name']} was killed"


def _running_step(kubeflow: Kubeflow, run_id: str) -> Any:
    running = (pod for pod in kubeflow.pods(run_id) if pod["status"].get("phase") == "Running")
    return next((pod for pod in running if STEP_POD in pod["metadata"]["name"]), None)


def terminate(kubeflow: Kubeflow, clock: Clock) -> str:
    """Terminate frees the run's clusters."""
    kubeflow.submit("terminate", *_main(kubeflow, "terminate"))
    run_id = kubeflow.runs["terminate"]
    kubeflow.cluster.until(lambda: kubeflow.place.rayjobs(run_id), RUN_S, "a RayJob of the run")
    clock.step("computing")
    kubeflow.client.terminate_run(run_id)
    kubeflow.cluster.until(lambda: not kubeflow.place.rayjobs(run_id), START_S, "the run's RayJobs removed")
    clock.step("RayJobs gone")
    state = kubeflow.end(run_id)
    clock.step("ended")
    expect(state in {"CANCELED", "FAILED"}, state)
    return f"{state}, RayJobs gone"


def recurring(kubeflow: Kubeflow, clock: Clock) -> str:
    """A recurring run of the prediction starts by itself and ends well."""
    uri, client = kubeflow.cluster.uri, kubeflow.client
    experiment = kubeflow.experiment_id()
    parameters = {"run_uri": uri("kfp/run"), "slides": [uri("cohort", SLIDE)], "out_uri": uri("kfp/recurring")}
    with tempfile.TemporaryDirectory() as folder:
        file = _compile(kubeflow, PREDICT, Path(folder))
        name = f"{kubeflow.experiment}-recurring"
        made = client.create_recurring_run(
            experiment, name, interval_second=SECONDS_BETWEEN_RUNS, params=parameters, pipeline_package_path=file
        )
    kubeflow.recurring.append(made.recurring_run_id)
    clock.step("made")
    run = kubeflow.cluster.until(
        lambda: _run_of(kubeflow.listed(experiment), made.recurring_run_id), START_S, "its first run"
    )
    kubeflow.runs["recurring"] = run.run_id
    clock.step("started")
    client.delete_recurring_run(made.recurring_run_id)
    state = kubeflow.end(run.run_id)
    clock.step("ended")
    expect(state == "SUCCEEDED", state)
    return f"started by itself, {state}"


def _run_of(runs: Sequence[Any], recurring_run_id: str) -> Any:
    return next((run for run in runs if run.recurring_run_id == recurring_run_id), None)
