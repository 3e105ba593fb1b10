"""The whole pipeline in the image, each step a container, on an object store."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kfp import local

from milcore.runtime import storage
from pipeline.__main__ import _arguments, _parser
from pipeline.dag import attention_mil
from pipeline.steps import variant
from tests.containers.conftest import Engine, docker_host
from tests.pipeline.test_run import SETTINGS, check_outcome, write_cohort


def run_as_a_pod(network: str, keys: dict[str, str]) -> Callable[..., int]:
    """Runs a step's container confined, and tells how it ended: kfp 2.17's own takes a failed step for a success."""

    def run(client: Any, image: str, command: list[str], volumes: dict[str, Any], **given: Any) -> int:
        container = client.containers.run(
            image=image, command=command, volumes=volumes, detach=True, read_only=True, cap_drop=["ALL"],
            tmpfs={"/tmp": "rw,size=2g,mode=1777"}, network=network,  # noqa: S108 - of the container
            shm_size="1g", environment={**given.get("environment", {}), **keys},
        )  # fmt: skip
        try:
            for line in container.logs(stream=True):
                print(line.decode(), end="")  # noqa: T201 - the runner's own way
            return int(container.wait()["StatusCode"])
        finally:
            container.remove(force=True)

    return run


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*have no effect in the current local runner:UserWarning")
def test_the_pipeline_runs_in_the_image_from_slides_to_the_report(
    engine: Engine, store_keys: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("docker", reason="kfp's DockerRunner needs it; `make test-containers` installs it")
    folder = "s3://milcore/pipeline"
    manifest = write_cohort(storage.join(folder, "cohort"), tmp_path)
    (root := tmp_path / "artifacts").mkdir()
    root.chmod(0o777)  # steps run as a user of the image's own
    host, service = docker_host(engine, tmp_path)
    monkeypatch.setenv("DOCKER_HOST", host)
    monkeypatch.setattr("kfp.local.docker_task_handler.run_docker_container", run_as_a_pod(engine.network, store_keys))
    places = ["--manifest", manifest, "--store-uri", f"{folder}/store", "--run-uri", f"{folder}/run"]
    given = vars(_parser(attention_mil).parse_args(["run", *places, *SETTINGS]))
    try:
        local.init(local.DockerRunner(), pipeline_root=str(root))
        variant(attention_mil, image=engine.image)(**_arguments(attention_mil, given))
    finally:
        if service is not None:
            service.terminate()
            service.wait()
    check_outcome(folder)
    assert storage.read_json(f"{folder}/run/status.json")["state"] == "SUCCEEDED"
