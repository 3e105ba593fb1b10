"""Pods that Kubeflow makes of the pipelines, counted on what they compile to.

Its drivers are pods: one for the root, one before each step (whose own pod is left out where the result is reused), one
before each sub-DAG such as an exit handler's, one before each loop and one before each of its iterations.

Source: kubeflow/pipelines, backend/src/v2/compiler/argocompiler/dag.go: DAG (root, exit hooks), task, iteratorTask,
iterationItemTask. On a cluster the main pipeline's 4 partitions came to 31 pods, 19 of them drivers, when it had two
more steps: what this counts for it.
"""

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
Spec = dict[str, Any]


class Pods(NamedTuple):
    """Pods of a DAG, those of cached steps among them, and how deep its sub-DAGs are nested."""

    drivers: int
    steps: int
    levels: int


def pods_of(spec: Spec, shards: int) -> Pods:
    """Pods of a whole pipeline whose loops have so many iterations."""
    below = pods_of_dag(spec, spec["root"]["dag"], shards)
    return below._replace(drivers=below.drivers + 1)


def pods_of_dag(spec: Spec, dag: Spec, shards: int) -> Pods:
    tasks = [pods_of_task(spec, task, shards) for task in dag["tasks"].values()]
    return Pods(*map(sum, list(zip(*tasks, strict=True))[:2]), 1 + max(task.levels for task in tasks))


def pods_of_task(spec: Spec, task: Spec, shards: int) -> Pods:
    component = spec["components"][task["componentRef"]["name"]]
    if "dag" not in component:
        return Pods(1, 1, 0)
    drivers, steps, levels = pods_of_dag(spec, component["dag"], shards)
    if "parameterIterator" in task:
        return Pods(1 + shards * (1 + drivers), shards * steps, 1 + levels)
    return Pods(1 + drivers, steps, levels)


def compiled(name: str) -> Spec:
    return next(iter(yaml.safe_load_all((ROOT / "pipeline" / f"{name}.yaml").read_text())))


def test_what_was_seen_on_a_cluster_is_what_is_counted() -> None:
    """The graph of 4 partitions that ran there: plan, survey, ingest, gather, encode, tune, train, evaluate, finish."""
    step, leaf = {"componentRef": {"name": "step"}}, {"executorLabel": "step"}
    loop = {"componentRef": {"name": "loop"}, "parameterIterator": {}}
    names = ("plan", "survey", "gather", "encode", "tune", "train", "evaluate")
    steps = {**dict.fromkeys(names, step), "for-loop": loop}
    components = {"step": leaf, "loop": {"dag": {"tasks": {"ingest": step}}}, "steps": {"dag": {"tasks": steps}}}
    root = {"dag": {"tasks": {"exit-handler": {"componentRef": {"name": "steps"}}, "finish": step}}}
    seen = pods_of({"components": components, "root": root}, shards=4)
    assert (seen.drivers, seen.drivers + seen.steps) == (19, 31)


@pytest.mark.parametrize("shards", [1, 2, 4, 50])
def test_the_main_pipeline_costs_three_pods_a_shard_and_fifteen_more(shards: int) -> None:
    """It was 19 and three a shard, of four shards where nothing was left to do, too: 31 pods, now 18."""
    pods = pods_of(compiled("attention_mil"), shards)
    assert pods.drivers + pods.steps == 15 + 3 * shards
    assert pods == Pods(drivers=9 + 2 * shards, steps=6 + shards, levels=4)


OTHERS = [("attention_mil_sweep", Pods(5, 3, 2)), ("attention_mil_predict", Pods(2, 1, 1))]


@pytest.mark.parametrize(("name", "pods"), OTHERS)
def test_the_pods_of_the_others(name: str, pods: Pods) -> None:
    assert pods_of(compiled(name), 1) == pods
