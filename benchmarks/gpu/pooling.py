"""Speed of training steps of gated attention on a device, and memory of a bag that is streamed to it.

The methods and the count of operations are those of ``benchmarks.pooling``. ``large`` bags lie on the device. A
``streamed`` bag lies in the host's pinned memory in bf16 and is read twice, since activations are recomputed; its bytes
per second count both reads.
"""

import importlib.util
import itertools
from collections.abc import Callable, Iterator

import torch

from benchmarks.gpu import settings
from benchmarks.gpu.device import matrix_peak_flops, medians, pinned_copy_bytes_per_s, seconds
from benchmarks.gpu.row import Row, at_least, not_run
from benchmarks.pooling import DTYPES, KEPT_MB, BagsOf, Batch, loop_step, make_batch, milcore_step, torchmil_step
from milcore.runtime.limits import memory_bytes

PART = "pooling"


def pooling(device: torch.device) -> Iterator[Row]:
    """Rows of large bags, of many small ones, and of one that is streamed."""
    sizes = settings.SIZES[device.type]
    large = (row for dtype in DTYPES for row in large_rows(sizes, dtype, device))
    rows = itertools.chain(large, small_rows(sizes, device), streamed_rows(sizes, device))
    # the goals are those of a GPU
    yield from rows if device.type == "cuda" else (row._replace(goal="", reached=None) for row in rows)


def on_device(sizes: BagsOf, dtype: torch.dtype, device: torch.device) -> Batch:
    """Bags that lie on the device."""
    batch = make_batch(sizes, dtype, settings.WIDTH)
    return batch._replace(features=batch.features.to(device), labels=batch.labels.to(device))


def large_rows(sizes: settings.Sizes, dtype: str, device: torch.device) -> Iterator[Row]:
    """A step on large bags, as a share of the peak of matrix products."""
    batch = on_device(sizes.large, DTYPES[dtype], device)
    step = milcore_step(batch, DTYPES[dtype], 0.0, KEPT_MB)
    second = medians({"milcore": step}, sizes.rounds, device)["milcore"]
    peak = matrix_peak_flops(DTYPES[dtype], device)
    case = f"{sizes.large.bags} bags of {sizes.large.low:,} x {settings.WIDTH}, {dtype}"
    flops = batch.flops / second
    yield Row(PART, case, f"{second * 1e3:.1f} ms a step, {flops / 1e12:.2f} TFLOP/s")
    share = f"{case}: share of the peak of {peak / 1e12:.2f} TFLOP/s"
    if dtype == "bf16":
        yield at_least(PART, share, flops / peak, settings.POOLING_PEAK_SHARE)
    else:
        yield Row(PART, share, f"{flops / peak:.2f}")


def small_rows(sizes: settings.Sizes, device: torch.device) -> Iterator[Row]:
    """A step on small bags, beside a loop over bags and torchmil."""
    batch = on_device(sizes.small, torch.float32, device)
    steps: dict[str, Callable[[], object]] = {
        "milcore": milcore_step(batch, torch.float32, 0.0, KEPT_MB),
        "loop": loop_step(batch, torch.float32, 0.0, accumulated=False),
    }
    if importlib.util.find_spec("torchmil") is not None:
        steps["torchmil"] = torchmil_step(batch, torch.float32, 0.0)
    times = medians(steps, sizes.rounds, device)
    case = f"{sizes.small.bags} bags of {sizes.small.low}-{sizes.small.high}, fp32"
    yield Row(PART, case, ", ".join(f"{name} {second * 1e3:.1f} ms" for name, second in times.items()))
    for name, goal in (("loop", settings.OVER_LOOP), ("torchmil", settings.OVER_TORCHMIL)):
        if name in times:
            yield at_least(PART, f"{case}: times as fast as {name}", times[name] / times["milcore"], goal, "{:.1f}")
        else:
            yield not_run(PART, f"{case}: times as fast as {name}", f"{name} is not installed")


def streamed_rows(sizes: settings.Sizes, device: torch.device) -> Iterator[Row]:
    """A step on one bag in the host's memory: bandwidth, and that device memory does not grow with it."""
    bytes_per_instance = settings.WIDTH * torch.bfloat16.itemsize
    fitting = int(settings.FREE_MEMORY_SHARE * memory_bytes()) // bytes_per_instance
    instances = min(sizes.streamed, fitting)
    case = f"1 bag of {instances:,} x {settings.WIDTH} in the host's memory, bf16"
    second, memory = streamed_step(instances, device)
    rate = settings.PASSES_OF_STREAMING * instances * bytes_per_instance / second
    yield Row(PART, case, f"{second:.2f} s a step, {rate / 1e9:.2f} GB/s")
    if device.type != "cuda":
        yield not_run(PART, f"{case}: share of the bandwidth of pinned copies", "no GPU")
        yield not_run(PART, f"{case}: device memory", "no GPU")
        return
    bandwidth = pinned_copy_bytes_per_s(device)
    share = f"{case}: share of {bandwidth / 1e9:.1f} GB/s of pinned copies"
    yield at_least(PART, share, rate / bandwidth, settings.STREAMED_BANDWIDTH_SHARE)
    small = streamed_step(instances // 10, device)[1]
    yield Row(
        PART,
        f"{case}: device memory over that of a tenth of it",
        f"{memory / small:.3f} ({memory / 1e6:,.0f} MB)",
        f"<= {settings.CONSTANT_MEMORY}",
        memory <= settings.CONSTANT_MEMORY * small,
    )


def streamed_step(instances: int, device: torch.device) -> tuple[float, int]:
    """Seconds of the second step on one bag, and bytes of device memory at its peak."""
    batch = make_batch(BagsOf(1, instances, instances), torch.bfloat16, settings.WIDTH)
    if device.type == "cuda":
        batch = batch._replace(features=batch.features.pin_memory())
    step = milcore_step(batch, torch.bfloat16, 0.0, settings.STREAMED_MB, device)
    step()
    if device.type != "cuda":
        return seconds(step, device), 0
    torch.cuda.reset_peak_memory_stats(device)
    return seconds(step, device), torch.cuda.max_memory_allocated(device)
