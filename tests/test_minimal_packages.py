"""The rooms that compute on a GPU import where few packages are installed."""

import subprocess
import sys

# with what these need themselves; others load where they are used
PACKAGES = (
    "torch", "numpy", "pydantic", "jaxtyping", "fsspec", "pyarrow", "safetensors", "zarr", "imagecodecs",
    "google-crc32c",
)  # fmt: skip
ROOMS = ("mil", "encoders", "store")

PROGRAM = """
import importlib, importlib.metadata as metadata, pkgutil, sys
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

def with_needs(names):
    waiting, needed = list(names), set()
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name not in needed:
            needed.add(name)
            try:
                requirements = map(Requirement, metadata.requires(name) or [])
            except metadata.PackageNotFoundError:
                continue  # of another platform
            waiting += [r.name for r in requirements if r.marker is None or r.marker.evaluate({"extra": ""})]
    return needed

packages, rooms = (words.split(",") for words in sys.argv[1:])
needed = with_needs(packages)
others = {
    module for module, owners in metadata.packages_distributions().items()
    if not needed & set(map(canonicalize_name, owners))
} - {"milcore"}
assert {"ray", "scipy", "botocore", "rich"} <= others, others

class Absence:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in others:
            raise ModuleNotFoundError(f"no module named {name}", name=name)

for name in [name for name in sys.modules if name.partition(".")[0] in others]:
    del sys.modules[name]
sys.meta_path.insert(0, Absence())
modules = 0
for room in rooms:
    package = importlib.import_module(f"milcore.{room}")
    for module in pkgutil.walk_packages(package.__path__, f"milcore.{room}."):
        importlib.import_module(module.name)
        modules += 1
print(modules)
"""


def test_models_encoders_and_stores_import_with_these_packages_alone() -> None:
    words = (",".join(PACKAGES), ",".join(ROOMS))
    done = subprocess.run([sys.executable, "-c", PROGRAM, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 80
