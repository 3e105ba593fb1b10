"""Clock and peaks of a device: matrix products, and copies from pinned memory."""

import statistics
import time
from collections.abc import Callable

import torch

REPEATS = 8


def synchronise(device: torch.device) -> None:
    """Wait for what the device has been given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(action: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call, until the device has ended it."""
    synchronise(device)
    start = time.perf_counter()
    action()
    synchronise(device)
    return time.perf_counter() - start


def medians(actions: dict[str, Callable[[], object]], rounds: int, device: torch.device) -> dict[str, float]:
    """Median seconds of actions that take turns, after a round that is not counted."""
    times: dict[str, list[float]] = {name: [] for name in actions}
    for turn in range(rounds + 1):
        for name, action in actions.items():
            taken = seconds(action, device)
            if turn:
                times[name].append(taken)
    return {name: statistics.median(each) for name, each in times.items()}


def matrix_peak_flops(dtype: torch.dtype, device: torch.device) -> float:
    """FLOP/s of large matrix products, the best of several sizes and repeats."""
    best = 0.0
    for edge in (4096, 8192) if device.type == "cuda" else (2048,):
        left, right = (torch.randn(edge, edge, device=device).to(dtype) for _ in range(2))
        times = [seconds(lambda a=left, b=right: torch.mm(a, b), device) for _ in range(REPEATS)]
        best = max(best, 2 * edge**3 / min(times))
    return best


def pinned_copy_bytes_per_s(device: torch.device) -> float:
    """Bytes a second of copies of 256 MB from pinned memory to a GPU."""
    source = torch.empty(256_000_000, dtype=torch.uint8, pin_memory=True)
    target = torch.empty_like(source, device=device)
    return source.numel() / min(seconds(lambda: target.copy_(source), device) for _ in range(REPEATS))
