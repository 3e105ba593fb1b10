"""Numbers and speed of every GPU path, measured by one command.

``python -m benchmarks.gpu [correctness|training|pooling|encode ...] [--device cuda|cpu] [--out FOLDER]``

Without names all parts run. Without a GPU the same rows are those of the CPU, at smaller sizes and without goals of
speed, and what only a GPU shows is named as not run. Beside torch it needs what ``milcore.mil`` imports; what else a
part needs and does not find is a row. ``FOLDER`` (default: build/gpu) gets ``gpu.md``, the table, and ``gpu.json``.
"""

import argparse
import importlib
import json
import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path

# cuBLAS computes alike in each run only with a fixed workspace, which is read when CUDA starts
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

try:
    import torch

    from benchmarks.gpu.row import Row, markdown, not_run
except ModuleNotFoundError as missing:
    sys.exit(f"gpu: needs the package {missing.name}; install it, or name another interpreter by PYTHON=")

PARTS = ("correctness", "training", "pooling", "encode")


def machine(device: torch.device) -> dict[str, str]:
    """Card, driver and versions."""
    about = {
        "device": device.type,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "processor": platform.processor() or platform.machine(),
        "threads": str(torch.get_num_threads()),
    }
    if device.type != "cuda":
        return about
    card = torch.cuda.get_device_properties(device)
    return about | {
        "card": f"{card.name}, {card.total_memory / 1e9:.0f} GB, compute capability {card.major}.{card.minor}",
        "cuda": str(torch.version.cuda),
        "cudnn": str(torch.backends.cudnn.version()),
        "driver": driver_version(),
    }


def driver_version() -> str:
    """Version of NVIDIA's kernel driver; empty where its file is not."""
    file = Path("/proc/driver/nvidia/version")
    return file.read_text().splitlines()[0].strip() if file.is_file() else ""


def rows_of(part: str, device: torch.device) -> Iterator[Row]:
    """Rows of a part; one that says so where a package is missing."""
    try:
        yield from getattr(importlib.import_module(f"benchmarks.gpu.{part}"), part)(device)
    except ModuleNotFoundError as missing:
        yield not_run(part, "the rest", f"no package {missing.name}")


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=PARTS, help=f"which parts (default: {' '.join(PARTS)})")
    parser.add_argument("--device", choices=("cuda", "cpu"), help="default: cuda where there is one")
    parser.add_argument("--out", type=Path, default=Path("build/gpu"), help="folder of gpu.md and gpu.json")
    given = parser.parse_args()
    unknown = [part for part in given.parts if part not in PARTS]
    if unknown:
        parser.error(f"parts: expected known ones, got {' '.join(unknown)}; allowed: {' '.join(PARTS)}")
    has_gpu = torch.cuda.is_available()
    if given.device == "cuda" and not has_gpu:
        parser.error("--device: expected a device that torch can use, got cuda without one; allowed: cpu")
    device = torch.device(given.device or ("cuda" if has_gpu else "cpu"))
    if device.type == "cpu":
        print("gpu: no GPU is used; these are the rows of the CPU, and say nothing of one", file=sys.stderr)
    about, rows = machine(device), []
    for part in given.parts:
        for row in rows_of(part, device):
            rows.append(row)
            print(" | ".join(filter(None, row[:4])), row.note, file=sys.stderr, flush=True)
    table = "\n".join([*(f"- {name}: {value}" for name, value in about.items()), "", markdown(rows), ""])
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "gpu.md").write_text(table)
    content = {"machine": about, "rows": [row._asdict() for row in rows]}
    (given.out / "gpu.json").write_text(json.dumps(content, indent=1))
    print(table)
    print(f"gpu: {given.out}/gpu.md and gpu.json")


if __name__ == "__main__":
    main()
