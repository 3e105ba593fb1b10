"""A container of 1.5 CPUs and 3 GiB, whatever its machine has: training takes what that leaves, and ends."""

import re
from pathlib import Path

import numpy as np
import pytest

from tests.containers.conftest import Engine
from tests.ingestion.imports.made import features_of, write_h5

# a step of 8 such bags has work for 16 threads
SLIDES, INSTANCES = 20, 1000
QUOTA = ["--cpus=1.5", "--memory=3g"]
COHORT = ["--env=MILCORE_ALLOWED_ROOTS=/cohort:/tmp"]
SEEN = "from milcore.runtime.limits import cpu_quota, memory_limit; print(cpu_quota(), memory_limit())"
# training, then what the kernel counted: pages that did not fit (version 1 and 2)
TRAIN = """
milcore import /cohort/features /tmp/store --format clam --labels /cohort/labels.csv &&
milcore train /tmp/store /tmp/run --features imported --epochs 3 --workers 1 &&
cat /sys/fs/cgroup/memory/memory.oom_control /sys/fs/cgroup/memory.events 2>/dev/null | grep oom_kill
"""


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    """Features of slides as CLAM writes them, for the image's own user."""
    row = np.array([[256 * k, 0] for k in range(INSTANCES)])
    for k in range(SLIDES):
        write_h5(tmp_path / "features" / f"s{k:02d}.h5", features_of(k, INSTANCES, 1024), row)
    rows = (f"s{k:02d},p{k},{k % 2}\n" for k in range(SLIDES))
    (tmp_path / "labels.csv").write_text("slide_id,patient_id,label\n" + "".join(rows))
    for path in (tmp_path, *tmp_path.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return tmp_path


@pytest.mark.slow
def test_training_takes_one_cpu_of_one_and_a_half_and_stays_in_its_memory(engine: Engine, cohort: Path) -> None:
    seen = engine.run("python", "-c", SEEN, flags=QUOTA)
    if seen.returncode or "None" in seen.stdout:
        pytest.skip(f"{engine.name} sets no limits here: {seen.stdout.strip()} {seen.stderr.strip()[-300:]}")
    assert seen.stdout.split() == ["1.5", str(3 << 30)]
    ended = engine.run("sh", "-c", TRAIN, flags=[*QUOTA, *COHORT, f"--volume={cohort}:/cohort:ro"])
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert "torch threads: 1; CPUs: 1" in ended.stderr
    assert "Ray CPUs: 1; object store: 322 MB" in ended.stderr
    assert "memory: cache_mb 805 and activation_mb 403 of 3,221 MB" in ended.stderr
    assert re.search(r"oom_kill (\d+)", ended.stdout)[1] == "0"  # type: ignore[index]
