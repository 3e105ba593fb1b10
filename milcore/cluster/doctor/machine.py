"""Checks of this machine: Python, packages, threads, memory, disk, slide readers, codecs, Ray.

Each check imports what it checks, so that a library that does not load is one finding.
"""

# ruff: noqa: PLC0415 - see above

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Generator, Mapping
from pathlib import Path

from milcore.cluster.doctor.finding import Finding, failure, ok, warning
from milcore.cluster.doctor.packages import package_findings
from milcore.runtime import limits

LEAST_PYTHON = (3, 11)
# a node of the smallest cluster profile in k8s/
LEAST_MEMORY_BYTES = 4 << 30
# scratch space of a pod, and the least that Ray's logs and a copied slide need
USUAL_DISK_BYTES, LEAST_DISK_BYTES = 20 << 30, 1 << 30
TEST_PX = 256


def machine_findings() -> Generator[Finding]:
    """Check this machine, in seconds."""
    yield python_finding(sys.version_info[:3])
    yield from package_findings()
    yield _import_finding("torch", _torch_finding)
    yield thread_finding(limits.cpus(), limits.cpu_quota(), os.environ)
    yield memory_finding(limits.memory_bytes())
    yield disk_finding(tempfile.gettempdir())
    yield _import_finding("slide readers", _reader_finding)
    yield _import_finding("codecs", _codec_finding)
    yield _import_finding("Ray", _ray_finding)


def python_finding(version: tuple[int, ...]) -> Finding:
    """Check the version of Python."""
    text = ".".join(map(str, version))
    if version < LEAST_PYTHON:
        return failure("Python", f"expected 3.11 or later, got {text}", "make the environment with Python 3.11")
    return ok("Python", text)


def thread_finding(cpus: int, quota: float | None, environment: Mapping[str, str]) -> Finding:
    """Check the threads of torch against the CPUs of this process.

    Args:
        cpus: that this process may use.
        quota: CPUs of its cgroups; None where there is none.
        environment: of this process.
    """
    threads = environment.get("OMP_NUM_THREADS", "")
    text = f"{cpus} CPU(s){'' if quota is None else f', by a quota of {quota:g}'}"
    if quota is not None and quota < 1:
        return warning("threads", f"a quota of {quota:g} CPU stops each thread part of the time", "allow 1 CPU or more")
    if threads.isdigit() and 0 < int(threads) < cpus:
        remedy = f"unset OMP_NUM_THREADS, or set it to {cpus}"
        return warning("threads", f"torch is held to {threads} of {text} by OMP_NUM_THREADS", remedy)
    return ok("threads", f"up to one for each of {text}")


def memory_finding(memory_bytes: int) -> Finding:
    """Check the memory that this process may use, bytes."""
    text = f"{_gib(memory_bytes)} GiB"
    if memory_bytes < LEAST_MEMORY_BYTES:
        least = _gib(LEAST_MEMORY_BYTES)
        remedy = f"give it {least} GiB; with less, lower workers, cache_mb and activation_mb"
        return warning("memory", f"{text}, less than the {least} GiB of the smallest node in use", remedy)
    return ok("memory", text)


def disk_finding(folder: str, usual: int = USUAL_DISK_BYTES, least: int = LEAST_DISK_BYTES) -> Finding:
    """Check the free space of the folder for temporary files.

    Args:
        folder: where slides are copied to, and Ray keeps its files.
        usual: bytes below which it may not do.
        least: bytes below which it does not do.
    """
    remedy = "set TMPDIR to a folder on a larger disk, or remove files there"
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"milcore")
            file.flush()
        free = shutil.disk_usage(folder).free
    except OSError as error:
        return failure("temporary folder", f"{folder} cannot be written: {error.strerror}", remedy)
    text = f"{folder} has {_gib(free)} GiB free"
    if free < least:
        return failure("temporary folder", f"{text}; expected {_gib(least)} GiB at the least", remedy)
    if free < usual:
        many = f"; slides copied from remote storage and Ray's files may need {_gib(usual)} GiB"
        return warning("temporary folder", f"{text}{many}", remedy)
    return ok("temporary folder", text)


def _gib(size: int) -> str:
    """Bytes as GiB, with one decimal where that says more."""
    return f"{size / (1 << 30):.1f}".removesuffix(".0")


def _import_finding(check: str, call: Callable[[], Finding]) -> Finding:
    """The finding of a check, or a failure where a library does not load."""
    from milcore.errors import MILError

    try:
        return call()
    except (ImportError, OSError, RuntimeError, ValueError, MILError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        return failure(check, reason, "install milcore anew in an environment of its own (`make setup` in a checkout)")


def _torch_finding() -> Finding:
    import torch

    torch.ones(2, 2).matmul(torch.ones(2, 2))
    if torch.cuda.is_available():
        names = ", ".join(sorted({torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())}))
        return ok("torch", f"{torch.__version__}, {torch.cuda.device_count()} GPU(s): {names}")
    if torch.version.cuda:
        text = f"{torch.__version__} is built for CUDA {torch.version.cuda}, but no GPU is usable"
        return warning("torch", text, "see `nvidia-smi`; without a GPU leave out --use-gpu")
    return ok("torch", f"{torch.__version__}, on CPUs alone")


def _reader_finding() -> Finding:
    """Read a slide of a few pixels with each reader."""
    import numpy as np
    from PIL import Image

    from milcore.slides import READERS, open_slide
    from milcore.slides.write_pyramid import write_pyramid

    pixels = np.full((TEST_PX, TEST_PX, 3), 200, np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        tiff, png = Path(folder, "slide.tiff"), Path(folder, "slide.png")
        write_pyramid(tiff, pixels, 0.5, 1)
        Image.fromarray(pixels).save(png)
        for name in READERS:
            with open_slide(png if name == "flat" else tiff, name) as slide:
                mean = slide.read(0, 0, 0, TEST_PX, TEST_PX).mean()
            if abs(mean - 200) > 2:
                return failure("slide readers", f"{name}: expected grey 200, got {mean:.0f}", "install milcore anew")
    return ok("slide readers", f"{', '.join(READERS)} each read a test slide")


def _codec_finding() -> Finding:
    """Encode and decode a patch with each codec; look up Zarr's."""
    from importlib.metadata import entry_points
    from typing import get_args

    import numpy as np

    from milcore.config import Codec
    from milcore.store.jpeg_codec import decode_into, encode_patch

    patch, names = np.full((TEST_PX, TEST_PX, 3), 200, np.uint8), get_args(Codec)
    for name in names:
        copy = np.zeros_like(patch)
        decode_into(encode_patch(patch, name, 90), name, copy)
        if abs(copy.mean() - 200) > 2:
            return failure("codecs", f"{name}: expected grey 200, got {copy.mean():.0f}", "install milcore anew")
    if not entry_points(group="zarr.codecs", name="milcore_jpeg"):
        text = f"{', '.join(names)}; but zarr does not know milcore_jpeg, so other programs cannot open patches"
        return warning("codecs", text, "install milcore as a package: pip install --editable .")
    return ok("codecs", f"{', '.join(names)}; zarr knows milcore_jpeg")


def _ray_finding() -> Finding:
    """Import the parts of Ray that are used; no cluster is started."""
    import ray
    import ray.job_submission
    import ray.train
    import ray.tune

    return ok("Ray", f"{ray.__version__} with train and tune")
