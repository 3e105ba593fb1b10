"""An S3 server of this machine: SeaweedFS from its wheel."""

import contextlib
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import s3fs

BUCKET = "milcore"
ROLES = ("s3.port", "master.port", "volume.port", "filer.port", "admin.port")


def s3_environment(port: int, secret: str | None = None) -> dict[str, str]:
    """Endpoint and keys of a server on this port; keys of its first start hold for the later ones."""
    return {
        "AWS_ACCESS_KEY_ID": "testkey",
        "AWS_SECRET_ACCESS_KEY": secret or secrets.token_hex(8),
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


@contextlib.contextmanager
def seaweedfs(folder: Path, ports: Sequence[int], *options: str) -> Iterator[str]:
    """URI of a bucket, for as long as the context; the environment holds ``s3_environment``.

    Args:
        folder: of its data and its log; one with a bucket goes on.
        ports: one for each of ``ROLES``.
        options: more of ``weed mini``.

    Raises:
        RuntimeError: it does not start.
    """
    command = [str(Path(sys.executable).with_name("weed")), "mini", f"-dir={folder}", "-ip=127.0.0.1",
               "-ip.bind=127.0.0.1", f"-bucket={BUCKET}", "-admin.ui=false", "-webdav=false", "-s3.port.iceberg=0",
               "-s3.port.lance=0", "-master.telemetry=false",
               *(f"-{role}={port}" for role, port in zip(ROLES, ports, strict=True)), *options]  # fmt: skip
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=folder)
    try:
        _wait(server, folder / "log")
        yield f"s3://{BUCKET}"
    finally:
        server.terminate()
        server.wait()


def _wait(server: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(300):
        if server.poll() is not None:
            break
        with contextlib.suppress(OSError):
            s3fs.S3FileSystem(skip_instance_cache=True).pipe_file(f"{BUCKET}/.ready", b"")
            return
        time.sleep(0.1)
    raise RuntimeError(f"SeaweedFS did not start: {log.read_text(errors='replace')[-2000:]}")
