"""Ray actors compute the features that one process computes, also when they are killed on the way."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
import torch
from torch import nn

from milcore.cluster.launch import encode_with
from milcore.cluster.workers.encode import SlideEncoder, encode_on_ray, encoder_resources
from milcore.config import EncodeConfig, LaunchConfig
from milcore.encoders.extraction.batches import Step
from milcore.encoders.extraction.encode import EncodeJob, encode
from milcore.encoders.extraction.request import slides_to_encode
from milcore.errors import ClusterError, InputError
from milcore.store.store import PatchStore
from tests.cohorts import write_store

NAME = "efficientnet_lite0"
ONE, TWO = LaunchConfig(workers=1), LaunchConfig(workers=2)
SLIDES, PATCHES = 6, 32


def digests(store: PatchStore, name: str = NAME) -> dict[str, str]:
    return {slide_id: store.slide(slide_id).feature_attrs(name)["digest"] for slide_id in store.slide_ids()}


def test_two_ray_workers_encode_what_one_process_encodes_to_the_bit(local_ray: None, tmp_path: Path) -> None:
    alone = write_store(str(tmp_path / "alone"), slides=4)
    together = write_store(str(tmp_path / "together"), slides=4)
    encode_with(alone.uri, EncodeConfig(), LaunchConfig())
    encoded = encode_with(together.uri, EncodeConfig(), TWO)
    assert sorted(slide.slide_id for slide in encoded) == together.slide_ids() == alone.slide_ids()
    assert not any(slide.skipped for slide in encoded)
    assert digests(alone) == digests(together)
    wait_for_free_cpus()


def wait_for_free_cpus() -> None:
    """Actors end with the run: what they held is free for the next step of the same cluster."""
    for _ in range(100):
        if ray.available_resources().get("CPU") == ray.cluster_resources()["CPU"]:
            return
        time.sleep(0.1)
    pytest.fail("CPUs are still held")


def test_an_encoder_that_is_not_there_is_the_input_s_fault(local_ray: None, tmp_path: Path) -> None:
    store = write_store(str(tmp_path), slides=2)
    config = EncodeConfig(encoder=f"torchscript:{tmp_path / 'nowhere.pt'}", name="mine")
    with pytest.raises(InputError, match="nothing at"):
        encode_with(store.uri, config, ONE)


def test_a_cluster_without_gpus_says_so(local_ray: None, tmp_path: Path) -> None:
    alone, both = encoder_resources(ONE, SLIDES), encoder_resources(TWO, SLIDES)
    assert both.actors == both.room == min(2, alone.cpus)
    store = write_store(str(tmp_path), slides=1)
    with pytest.raises(ClusterError, match=r"expected at most 0 of 1 CPU, 1 GPU each, got 1; .* leave out --use-gpu"):
        encode_with(store.uri, EncodeConfig(), LaunchConfig(workers=1, use_gpu=True))


@pytest.mark.parametrize(
    ("nodes", "workers", "use_gpu", "resources"),
    [
        ([(8, 0)], 2, False, (2, 2, 4, 0)),
        ([(8, 0), (8, 0)], 3, False, (3, 3, 4, 0)),  # of five CPUs each a node would hold one, and the third have none
        ([(0, 0), (4, 0)], 6, False, (6, 4, 1, 0)),  # two more join with their nodes
        ([(64, 0), (8, 4)], 4, True, (4, 4, 2, 1)),  # CPUs beside no GPU are no use
        ([(16, 1)], 3, True, (3, 1, 16, 1)),
        ([(16, 0)], 9, False, (6, 6, 2, 0)),  # no more workers than slides
    ],
)
def test_all_workers_that_are_there_encode_side_by_side(
    monkeypatch: pytest.MonkeyPatch,
    nodes: list[tuple[int, int]],
    workers: int,
    use_gpu: bool,
    resources: tuple[int, int, int, int],
) -> None:
    """Actors, those with room now, CPUs and GPUs of each."""
    known = [{"Alive": True, "Resources": {"CPU": float(cpus), "GPU": float(gpus)}} for cpus, gpus in nodes]
    monkeypatch.setattr("ray.nodes", lambda: known)
    launch = LaunchConfig(workers=workers, use_gpu=use_gpu, ray_address="auto")
    assert encoder_resources(launch, SLIDES) == resources


@pytest.fixture
def slow_encoder(tmp_path: Path) -> str:
    """Some milliseconds of work a patch, so that there is time to kill who does it."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(64, 64, kernel_size=3, padding=1) for _ in range(30)]
    for layer in layers:  # each hands its input on, so that features tell patches apart
        nn.init.dirac_(layer.weight)
    network = nn.Sequential(nn.Conv2d(3, 64, kernel_size=1), *layers, nn.AvgPool2d(16), nn.Flatten()).eval()
    file = tmp_path / "slow.pt"
    torch.jit.trace(network, torch.zeros(1, 3, 16, 16)).save(str(file))
    return f"torchscript:{file},input_px=16"


@pytest.fixture
def undisturbed(tmp_path: Path, slow_encoder: str) -> dict[str, str]:
    """Digests of the features of six slides that one process computed."""
    store = write_store(str(tmp_path / "alone"), slides=SLIDES, patches=PATCHES)
    list(encode(store.uri, EncodeConfig(encoder=slow_encoder, name="slow")))
    slow = digests(store, "slow")
    assert len(set(slow.values())) == SLIDES
    return slow


def complete(store: PatchStore) -> dict[str, str]:
    """Digests of the features that are there, which are all that a reader is given."""
    slides = {slide_id: store.slide(slide_id) for slide_id in store.slide_ids()}
    return {name: slide.feature_attrs("slow")["digest"] for name, slide in slides.items() if slide.has_features("slow")}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_a_killed_actor_costs_only_the_slide_it_was_at(
    local_ray: None, tmp_path: Path, slow_encoder: str, undisturbed: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another is killed while it loads the encoder, and costs none."""
    store = write_store(str(tmp_path / "store"), slides=SLIDES, patches=PATCHES)
    monkeypatch.setattr("milcore.cluster.workers.encode.SlideEncoder", mortal(tmp_path, deaths_loading=1))
    config = EncodeConfig(encoder=slow_encoder, name="slow", patches_per_batch=4)
    computed, ended, killed = 0, [], False
    for step in encode_on_ray(EncodeJob(store.uri, config, "cpu"), slides_to_encode(store.uri, config), TWO):
        computed += step.patches
        ended += [step.slide] if step.slide else []
        if not killed and ended:
            os.kill(int((tmp_path / "encoding").read_text()), signal.SIGKILL)
            killed = True
    assert killed
    assert sorted(slide.slide_id for slide in ended) == store.slide_ids()
    # what was ended stays: twice was computed less than the slide it was at and the next, of which it had batches
    assert SLIDES * PATCHES <= computed < (SLIDES + 2) * PATCHES
    assert complete(store) == undisturbed


def mortal(folder: Path, deaths_loading: int) -> type:
    """An actor that leaves its process's number as it begins to encode, and is killed on loading for so many times."""

    class MortalSlideEncoder(SlideEncoder):
        def load(self) -> None:
            died = len(list(folder.glob("died-*")))
            if died < deaths_loading:
                (folder / f"died-{died}").touch()
                os.kill(os.getpid(), signal.SIGKILL)
            super().load()

        def steps(self) -> Iterator[Step]:
            with contextlib.suppress(FileExistsError), (folder / "encoding").open("x") as file:
                file.write(str(os.getpid()))
            yield from super().steps()

    return MortalSlideEncoder


@pytest.mark.faults
def test_a_third_death_on_loading_ends_the_run(
    local_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = write_store(str(tmp_path / "store"), slides=1)
    monkeypatch.setattr("milcore.cluster.workers.encode.SlideEncoder", mortal(tmp_path, deaths_loading=3))
    slides = slides_to_encode(store.uri, EncodeConfig())
    with pytest.raises(ClusterError, match="3 Ray workers died while they loaded the encoder"):
        list(encode_on_ray(EncodeJob(store.uri, EncodeConfig(), "cpu"), slides, ONE))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_a_killed_driver_leaves_no_half_features_and_the_next_run_ends_alike(
    local_ray: None, tmp_path: Path, slow_encoder: str, undisturbed: dict[str, str]
) -> None:
    """Its actors, which are the cluster's, end with it or go on writing: the same bytes either way."""
    store = write_store(str(tmp_path / "store"), slides=SLIDES, patches=PATCHES)
    milcore = str(Path(sys.executable).with_name("milcore"))
    address = ray.get_runtime_context().gcs_address
    command = [milcore, "encode", store.uri, "--encoder", slow_encoder, "--name", "slow", "--patches-per-batch", "4",
               "--workers", "2", "--ray-address", address]  # fmt: skip
    driver = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while driver.poll() is None and not complete(store):
        time.sleep(0.01)
    driver.kill()
    driver.wait()
    left = complete(store)
    assert 1 <= len(left) < SLIDES, "it was to be killed in the middle"
    assert left.items() <= undisturbed.items()
    encoded = encode_with(store.uri, EncodeConfig(encoder=slow_encoder, name="slow"), TWO)
    assert {slide.slide_id for slide in encoded if slide.skipped} >= set(left)
    assert complete(store) == undisturbed
