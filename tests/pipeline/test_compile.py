"""What is declared: the committed YAML, strings between steps, one default in one place."""

import ast
import builtins
import dis
import functools
import inspect
import itertools
import re
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import CodeType
from typing import Any

import pytest
import yaml
from google.protobuf import json_format

from components.encode import encode
from components.evaluate import evaluate
from components.finish import finish
from components.ingest import ingest
from components.plan import plan
from components.predict import predict
from components.size import size
from components.sizes import SMALL, Size, step_size
from components.train import train
from components.tune import tune
from milcore.config import (
    EncodeConfig,
    IngestConfig,
    LaunchConfig,
    SplitConfig,
    TrainConfig,
    TuneConfig,
    parameter_default,
)
from milcore.runtime.step_retry import OWN_RETRIES, SCHEDULER_RETRIES
from pipeline import attention_mil, sweep
from pipeline.__main__ import PIPELINES, main
from pipeline.parameters import PARAMETERS
from pipeline.steps import FIELDS, RAY_SECRET, USER_ID, variant

ROOT = Path(__file__).resolve().parents[2]
OF_THE_WHOLE = (plan, ingest, encode, tune, train, evaluate, finish)
COMPONENTS = {its.name: its for its in (*OF_THE_WHOLE, predict, size)}
CACHED = {"ingest", "evaluate"}
# the first step checks what the others launch
LAUNCHERS = {"plan", "ingest", "encode", "tune", "train"}
BODY_LINES = 15
# the pipeline's encoder is the frozen one, hence EncodeConfig after TrainConfig
SETTINGS = (TrainConfig, IngestConfig, EncodeConfig, SplitConfig, TuneConfig)
MOST_PARAMETERS = 30


@functools.cache
def compiled(*arguments: str) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "pipeline.yaml")
        assert main(["compile", "--out", str(out), *arguments]) == 0
        return list(yaml.safe_load_all(out.read_text()))


@pytest.mark.parametrize("name", PIPELINES)
def test_every_step_runs_as_the_image_s_numeric_user(name: str) -> None:
    spec, platform = compiled("--pipeline", name)
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    assert executors.keys() == spec["deploymentSpec"]["executors"].keys()
    contexts = [executor.get("securityContext") for executor in executors.values()]
    expected = {"runAsUser": str(USER_ID), "runAsGroup": str(USER_ID), "runAsNonRoot": True}
    assert contexts == [expected] * len(contexts)


@pytest.mark.parametrize("name", PIPELINES)
def test_the_committed_yaml_is_what_the_code_compiles_to(name: str) -> None:
    committed = list(yaml.safe_load_all((ROOT / "pipeline" / f"{name.replace('-', '_')}.yaml").read_text()))
    assert compiled("--pipeline", name) == committed, "run `python -m pipeline compile` and commit"


def test_no_step_takes_an_artifact() -> None:
    """The KFP launcher would copy it into the pod; between steps travel strings."""
    spec = compiled()[0]
    for name, component in spec["components"].items():
        assert "artifacts" not in component.get("inputDefinitions", {}), name


def test_the_typed_outputs_are_those_the_kubeflow_ui_shows() -> None:
    outputs = {
        (name, output): its["artifactType"]["schemaTitle"]
        for name, component in compiled()[0]["components"].items()
        for output, its in component.get("outputDefinitions", {}).get("artifacts", {}).items()
    }
    kinds = {kind for (name, _), kind in outputs.items() if name in {"comp-train", "comp-evaluate"}}
    assert kinds == {
        "system.Model",
        "system.Metrics",
        "system.ClassificationMetrics",
        "system.HTML",
        "system.Markdown",
        "system.Dataset",
    }


def test_the_image_is_that_of_every_step() -> None:
    executors = compiled("--image", "registry/mil:1")[0]["deploymentSpec"]["executors"]
    assert len(executors) == len(OF_THE_WHOLE)
    assert {its["container"]["image"] for its in executors.values()} == {"registry/mil:1"}


def tasks_of(spec: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Every task that is a step."""
    dags = [spec["root"]["dag"], *(its["dag"] for its in spec["components"].values() if "dag" in its)]
    named = itertools.chain.from_iterable(dag["tasks"].items() for dag in dags)
    return {name: task for name, task in named if name in COMPONENTS}


def test_kubeflow_may_reuse_the_steps_that_take_a_digest_of_storage_and_no_other() -> None:
    """Its cache knows arguments, not what lies in storage."""
    tasks = tasks_of(compiled()[0])
    assert {name for name, its in tasks.items() if its["cachingOptions"].get("enableCache")} == CACHED
    for name in CACHED:
        source = tasks[name]["inputs"]["parameters"]["state"]
        assert "componentInputParameter" in source or source["taskOutputParameter"]["producerTask"] == "train"


def test_a_run_on_this_machine_waits_for_no_retry() -> None:
    made = json_format.MessageToDict(variant(attention_mil, retries=0).pipeline_spec)
    assert not any("retryPolicy" in task for task in tasks_of(made).values())


def test_a_step_that_fails_is_tried_again_but_not_one_that_only_checks_input() -> None:
    tasks = tasks_of(compiled()[0])
    assert {name for name, its in tasks.items() if "retryPolicy" not in its} == {"plan"}
    assert tasks["train"]["retryPolicy"]["backoffFactor"] == 2.0
    retries = tasks["train"]["retryPolicy"]["maxRetryCount"]
    executors = compiled()[0]["deploymentSpec"]["executors"]
    variables = {
        name: {each["name"]: each["value"] for each in its["container"]["env"]} for name, its in executors.items()
    }
    own = {name: its[OWN_RETRIES] for name, its in variables.items() if OWN_RETRIES in its}
    assert own == {"exec-plan": str(retries)}, "it tries again itself, and not after bad input"
    told = {name for name, its in variables.items() if its.get(SCHEDULER_RETRIES) == str(retries)}
    assert told == executors.keys() - own.keys()


def test_credentials_are_secrets_and_steps_know_their_pod() -> None:
    spec, platform = compiled()
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    assert len(executors) == len(OF_THE_WHOLE)
    for name, its in executors.items():
        taken = {key["envVar"] for secret in its["secretAsEnv"] for key in secret["keyToEnv"]}
        assert {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"} <= taken
        assert {field["name"] for field in its["fieldPathAsEnv"]} == set(FIELDS), name
        knows_ray = any(secret["secretName"] == RAY_SECRET for secret in its["secretAsEnv"])
        assert knows_ray == (name.removeprefix("exec-") in LAUNCHERS)
    assert "AWS_SECRET_ACCESS_KEY" not in yaml.safe_dump(spec)


@pytest.mark.parametrize(("arguments", "pods"), [((), 50), (("--parallel", "7"), 7)])
def test_the_pods_of_the_fan_out_are_bounded(arguments: tuple[str, ...], pods: int) -> None:
    policies = [
        task["iteratorPolicy"]
        for its in compiled(*arguments)[0]["components"].values()
        for task in its.get("dag", {"tasks": {}})["tasks"].values()
        if "iteratorPolicy" in task
    ]
    assert policies == [{"parallelismLimit": pods}]


@pytest.mark.parametrize("text", ["0", "-1", "many"])
def test_a_bound_that_is_none_is_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["compile", "--parallel", text])
    assert "allowed: 1, 2 …" in capsys.readouterr().err


def test_the_cluster_is_freed_however_the_steps_end() -> None:
    root = compiled()[0]["root"]["dag"]["tasks"]
    assert root["finish"]["triggerPolicy"]["strategy"] == "ALL_UPSTREAM_TASKS_COMPLETED"
    assert root["finish"]["dependentTasks"] == ["exit-handler-1"]


def test_the_sweep_s_parameters_are_those_of_the_whole_pipeline() -> None:
    whole, swept = (its.component_spec.inputs for its in (attention_mil, sweep))
    assert set(swept) == set(tune.component_spec.inputs) | {"step_cpus", "step_memory"}
    for name in set(swept) - {"features"}:
        assert swept[name] == whole[name], name


def test_every_parameter_a_task_names_reaches_the_loop_or_handler_it_stands_in() -> None:
    for name, its in compiled()[0]["components"].items():
        for task in its.get("dag", {"tasks": {}})["tasks"].values():
            taken = task.get("inputs", {}).get("parameters", {}).values()
            outer = {source["componentInputParameter"] for source in taken if "componentInputParameter" in source}
            assert outer <= its["inputDefinitions"]["parameters"].keys(), name


def resources(task: str) -> dict[str, Any]:
    """Resources of a step of the whole pipeline, without the braces of parameters."""
    asked = compiled()[0]["deploymentSpec"]["executors"][f"exec-{task}"]["container"]["resources"]
    return {name: asked.get(f"resource{name}", "").removeprefix("{{$.inputs.parameters['").removesuffix("']}}")
            for name in ("CpuRequest", "CpuLimit", "MemoryRequest", "MemoryLimit")}  # fmt: skip


@pytest.mark.parametrize("task", ["ingest", "encode", "tune", "train"])
def test_the_first_step_sizes_those_that_may_only_launch(task: str) -> None:
    """By its outputs, which are inputs of the tasks; no condition is in the graph."""
    names = {name: re.sub("([a-z])([A-Z])", r"\1_\2", name).lower() for name in resources(task)}
    assert resources(task) == {name: f"pipelinechannel--plan-{task}_{name_of}" for name, name_of in names.items()}
    inputs = tasks_of(compiled()[0])[task]["inputs"]["parameters"]
    assert set(resources(task).values()) <= inputs.keys()
    assert "triggerPolicy" not in tasks_of(compiled()[0])[task]


@pytest.mark.parametrize(("name", "first"), [("attention-mil", "plan"), ("attention-mil-sweep", "size")])
def test_the_first_step_has_the_launcher_s_variables_and_profile(name: str, first: str) -> None:
    """It checks what the others launch."""
    executors = compiled("--pipeline", name)[1]["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    its, launcher = (executors[f"exec-{task}"] for task in (first, "tune"))
    for kind in ("secretAsEnv", "configMapAsEnv", "configMapAsVolume", "fieldPathAsEnv"):
        assert its[kind] == launcher[kind]


@pytest.mark.parametrize("task", ["plan", "finish"])
def test_steps_that_only_look_around_are_small(task: str) -> None:
    assert tuple(resources(task).values()) == SMALL[:4] == ("200m", "1", "512Mi", "2Gi")


@pytest.mark.parametrize(
    ("step", "ray_address", "workers", "small"),
    [
        ("encode", "local", 0, False), ("encode", "local", 4, False), ("encode", "rayjob", 0, False),
        ("encode", "rayjob", 1, True), ("encode", "http://head:8265", 2, True), ("encode", "https://h", 0, False),
        ("encode", "head:6379", 2, False), ("ingest", "rayjob", 2, True), ("ingest", "rayjob", 0, False),
        ("train", "rayjob", 0, False), ("train", "rayjob", 2, True), ("tune", "local", 0, False),
        ("tune", "local", 2, False), ("tune", "rayjob", 0, True), ("tune", "http://head:8265", 0, True),
    ],
)  # fmt: skip
def test_a_step_that_computes_has_the_size_that_was_asked_for(
    step: str, ray_address: str, workers: int, small: bool
) -> None:
    given = {"ray_address": ray_address, "step_cpus": "6", "step_memory": "24Gi", "step_gpus": "1"}
    of_steps = {"ingest_workers": 0, "encode_workers": 0, "workers": 0}
    of_steps[{"ingest": "ingest_workers", "encode": "encode_workers"}.get(step, "workers")] = workers
    assert step_size(step, given | of_steps) == (
        SMALL._replace(gpus="0") if small else Size("6", "6", "24Gi", "24Gi", "1")
    )


def test_a_parameter_that_is_a_setting_has_the_setting_s_default() -> None:
    parameters = attention_mil.component_spec.inputs
    kinds = {name: kind for kind in SETTINGS for name in kind.model_fields}
    shared = kinds.keys() & parameters.keys()
    assert len(shared) >= 10
    for name in shared:
        assert parameters[name].default == parameter_default(kinds[name], name), name


def test_the_main_pipeline_shows_what_a_user_turns_each_under_its_group() -> None:
    assert len(attention_mil.component_spec.inputs) <= MOST_PARAMETERS
    for name, spec in attention_mil.component_spec.inputs.items():
        assert spec.description.split(":")[0] in PARAMETERS, name


@pytest.mark.parametrize("pipeline", [attention_mil, sweep])
def test_a_pipeline_says_that_its_bag_of_survival_is_a_patient(pipeline: Any) -> None:
    """As ``PipelineSettings`` takes it: a parameter at its default cannot be told from one that is given."""
    description = pipeline.component_spec.inputs["bag"].description
    assert "(the default with a survival target); here slide is patient with that target, too" in description


def test_every_parameter_in_the_table_is_one_of_a_pipeline() -> None:
    names = {name for parameters in PARAMETERS.values() for name in parameters}
    assert names == set(attention_mil.component_spec.inputs) | {"features"}


@pytest.mark.parametrize("name", COMPONENTS)
def test_a_component_is_a_declaration(name: str) -> None:
    """No default, no name from its module, and at most fifteen lines of body: only its source travels."""
    function = COMPONENTS[name].python_func
    assert all(p.default is inspect.Parameter.empty for p in inspect.signature(function).parameters.values())
    tree = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    assert isinstance(tree, ast.FunctionDef)
    body = tree.body[1:]  # after the docstring
    lines = {line for its in body for line in range(its.lineno, (its.end_lineno or its.lineno) + 1)}
    assert len(lines) <= BODY_LINES
    assert set(globals_of(function.__code__)) <= set(vars(builtins))


def globals_of(code: CodeType) -> Iterator[str]:
    """The names a function looks up outside itself."""
    yield from (its.argval for its in dis.get_instructions(code) if its.opname == "LOAD_GLOBAL")
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from globals_of(inner)


@pytest.mark.parametrize("name", COMPONENTS)
def test_every_input_is_described_for_the_kubeflow_ui(name: str) -> None:
    for parameter, its in (COMPONENTS[name].component_spec.inputs or {}).items():
        assert its.description, f"{name}.{parameter}"


def test_required_parameters_are_three() -> None:
    required = [name for name, its in attention_mil.component_spec.inputs.items() if not its.optional]
    assert required == ["manifest", "store_uri", "run_uri"]


def test_a_launcher_parameter_has_the_launcher_s_default() -> None:
    parameters = attention_mil.component_spec.inputs
    assert parameters["ray_address"].default == LaunchConfig().ray_address
    assert parameters["use_gpu"].default == LaunchConfig().use_gpu
