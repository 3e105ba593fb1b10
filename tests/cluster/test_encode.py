"""Ray actors compute the features that one process computes, also when they are killed on the way."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import ray
import torch
from torch import nn

from milcore.cluster.encode import encode_on_ray, share_of
from milcore.cluster.launch import encode_with
from milcore.config import EncodeConfig, LaunchConfig
from milcore.encoders.encode import Work, encode, slides_to_encode
from milcore.errors import ClusterError, InputError
from milcore.store import PatchStore
from tests.cohorts import write_store

NAME = "efficientnet_lite0"
TWO = LaunchConfig(workers=2)


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
    assert all(slide.skipped for slide in encode_with(together.uri, EncodeConfig(), TWO))


def test_an_encoder_that_is_not_there_is_the_input_s_fault(local_ray: None, tmp_path: Path) -> None:
    store = write_store(str(tmp_path), slides=2)
    config = EncodeConfig(encoder=f"torchscript:{tmp_path / 'nowhere.pt'}", name="mine")
    with pytest.raises(InputError, match="nothing at"):
        encode_with(store.uri, config, TWO)


def test_a_cluster_without_gpus_says_so(local_ray: None, tmp_path: Path) -> None:
    assert share_of(TWO).actors == min(2, share_of(LaunchConfig(workers=1)).cpus)
    with pytest.raises(ClusterError, match="has no GPU"):
        share_of(LaunchConfig(workers=1, use_gpu=True))


@pytest.fixture
def slow_encoder(tmp_path: Path) -> str:
    """Some milliseconds of work a patch, so that there is time to kill who does it."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(64, 64, kernel_size=3, padding=1) for _ in range(30)]
    network = nn.Sequential(nn.Conv2d(3, 64, kernel_size=1), *layers, nn.AvgPool2d(16), nn.Flatten()).eval()
    file = tmp_path / "slow.pt"
    torch.jit.trace(network, torch.zeros(1, 3, 16, 16)).save(str(file))
    return f"torchscript:{file},input_px=16"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_a_killed_actor_costs_only_the_slide_it_was_at(local_ray: None, tmp_path: Path, slow_encoder: str) -> None:
    alone = write_store(str(tmp_path / "alone"), slides=6, patches=32)
    store = write_store(str(tmp_path / "store"), slides=6, patches=32)
    config = EncodeConfig(encoder=slow_encoder, name="slow", patches_per_batch=4)
    steps = encode_on_ray(Work(store.uri, config, "cpu"), slides_to_encode(store.uri), TWO)
    computed, ended, victim = 0, [], None
    for step in steps:
        computed += step.patches
        ended += [step.slide.slide_id] if step.slide else []
        if victim is None and ended:
            victim = _actors()[0]
            os.kill(victim, signal.SIGKILL)
    assert victim is not None
    assert sorted(ended) == store.slide_ids()
    # at most the batches of one slide, queued ones and those of a slide begun were computed twice
    assert 6 * 32 <= computed <= 8 * 32
    list(encode(alone.uri, config))
    assert digests(store, "slow") == digests(alone, "slow")


def _actors() -> list[int]:
    """Processes below this one that encode."""
    found = []
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if folder.name.isdigit() and b"SlideEncoder" in (folder / "cmdline").read_bytes() and _is_ours(folder.name):
                found.append(int(folder.name))
    return found


def _is_ours(pid: str) -> bool:
    """Whether a process descends from this one."""
    while pid not in ("0", str(os.getpid())):
        pid = Path("/proc", pid, "stat").read_text().rpartition(")")[2].split()[1]
    return pid != "0"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_a_killed_driver_leaves_no_half_features_and_the_next_run_ends_alike(tmp_path: Path, slow_encoder: str) -> None:
    alone = write_store(str(tmp_path / "alone"), slides=4, patches=32)
    store = write_store(str(tmp_path / "store"), slides=4, patches=32)
    milcore = str(Path(sys.executable).with_name("milcore"))
    command = [milcore, "encode", store.uri, "--encoder", slow_encoder, "--name", "slow"]
    driver = subprocess.Popen(command, stderr=subprocess.PIPE)
    while driver.poll() is None and not any(store.slide(name).has_features("slow") for name in store.slide_ids()):
        time.sleep(0.01)
    driver.kill()
    driver.wait()
    done = {name: store.slide(name) for name in store.slide_ids() if store.slide(name).has_features("slow")}
    assert 1 <= len(done) < 4, "it was to be killed in the middle"
    config = EncodeConfig(encoder=slow_encoder, name="slow")
    list(encode(alone.uri, config))
    for name, slide in done.items():
        assert slide.feature_attrs("slow")["digest"] == digests(alone, "slow")[name]
    assert sorted(slide.slide_id for slide in encode(store.uri, config) if slide.skipped) == sorted(done)
    assert digests(store, "slow") == digests(alone, "slow")


def test_actors_end_with_the_run(local_ray: None, tmp_path: Path) -> None:
    """What they held is free for the next step of the same cluster."""
    store = write_store(str(tmp_path), slides=2)
    encode_with(store.uri, EncodeConfig(), TWO)
    for _ in range(100):
        if ray.available_resources().get("CPU") == ray.cluster_resources()["CPU"]:
            return
        time.sleep(0.1)
    pytest.fail("CPUs are still held")
