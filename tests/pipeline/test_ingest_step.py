"""The steps of ingestion: several that share the slides, or one whose job deals them."""

import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from components.encode import encode
from components.ingest import ingest
from components.plan import plan
from milcore import api
from milcore.config import IngestConfig, LaunchConfig
from milcore.errors import InputError, MILError
from milcore.store.store import PatchStore
from pipeline import attention_mil
from tests.cluster.doctor.kubernetes_api import FakeCluster
from tests.cluster.http_api import serving_here

SLIDES = 5
JOBS = ["rayjob", "http://milcore-head-svc:8265", "https://ray.example"]


@pytest.fixture(autouse=True)
def _cluster(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A namespace with the launcher's rights, which planning asks for."""
    with serving_here(FakeCluster({}), tmp_path_factory.mktemp("kube"), monkeypatch):
        yield


def planned(folder: Path, **given: Any) -> tuple[list[str], str]:
    """Partitions and state of slides that are absent, by the defaults of the pipeline."""
    rows = [f"s{k},absent{k}.svs,{k % 2}" for k in range(SLIDES)]
    (folder / "m.csv").write_text("\n".join(["slide_id,uri,label", *rows, ""]))
    whole = inspect.signature(attention_mil.pipeline_func).parameters
    defaults = {name: whole[name].default for name in inspect.signature(plan.python_func).parameters}
    places = {"manifest": str(folder / "m.csv"), "store_uri": str(folder / "store")}
    partitions, state, *_ = plan.python_func(**{**defaults, **places, **given})
    return partitions, state


@pytest.mark.parametrize("ray_address", JOBS)
def test_a_job_s_workers_share_one_partition(tmp_path: Path, ray_address: str) -> None:
    plans = [planned(tmp_path, partitions=3, ingest_workers=2, ray_address=ray_address) for _ in range(2)]
    assert [partitions for partitions, _ in plans] == [["0/1"]] * 2
    assert plans[0][1] != plans[1][1], "Kubeflow does not reuse a step that launches Ray"


@pytest.mark.parametrize(("ray_address", "workers"), [("local", 2), ("head:6379", 2), ("rayjob", 0), (JOBS[1], 0)])
def test_else_steps_share_the_slides(tmp_path: Path, ray_address: str, workers: int) -> None:
    partitions, _ = planned(tmp_path, partitions=3, ingest_workers=workers, ray_address=ray_address)
    assert partitions == ["0/3", "1/3", "2/3"]


def test_each_step_accounts_for_its_slides(tmp_path: Path) -> None:
    settings = {"mpp": 0.5, "patch_size": 64, "default_mpp": 0.0, "settings": "", "workers": 0}
    ray = {"ray_address": "rayjob", "cluster_profile": ""}
    partitions, _ = planned(tmp_path, partitions=2, ray_address="rayjob")
    store = str(tmp_path / "store")
    outcomes = [ingest.python_func(store, each, "state", **settings, **ray) for each in partitions]
    assert sum(json.loads(outcome)["quarantined"] for outcome in outcomes) == SLIDES
    assert list(PatchStore(store).quarantined()) == [f"s{k}" for k in range(SLIDES)]
    assert max(map(len, outcomes)) < 100, "an argument of a process holds 128 kB: those of a thousand steps fit"
    with pytest.raises(MILError, match="the partitions hold"):
        api.gather_ingestion(store, [json.loads(outcomes[0])])
    with pytest.raises(SystemExit) as ended:
        encode.python_func(store, outcomes, "efficientnet_lite0", settings="", use_gpu=False, workers=0, **ray)
    assert ended.value.code == InputError.exit_code


def test_where_no_slide_is_missing_one_step_asks_for_the_same_result(tmp_path: Path) -> None:
    """Each more would cost Kubeflow three pods; an equal digest lets it reuse the result."""
    (tmp_path / "pixels").mkdir()
    Image.fromarray(np.full((64, 64, 3), 250, np.uint8)).save(tmp_path / "pixels/s.png")
    rows = [f"s{k},pixels/s.png,{k % 2},0.5" for k in range(4)]
    (tmp_path / "cohort.csv").write_text("\n".join(["slide_id,uri,label,mpp", *rows, ""]))
    manifest, store = str(tmp_path / "cohort.csv"), str(tmp_path / "store")
    first = planned(tmp_path, manifest=manifest, partitions=2, patch_size=32)
    assert first[0] == ["0/2", "1/2"]
    for part in first[0]:
        api.ingest_partition(store, part, IngestConfig(patch_size=32), LaunchConfig())
    second, third = (planned(tmp_path, manifest=manifest, partitions=2, patch_size=32) for _ in range(2))
    assert second == third == (["0/1"], second[1])
    assert second[1] != first[1]
