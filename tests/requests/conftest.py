"""Requests of every command on a cohort of 30 and one of 60 slides, counted once for all tests of the room."""

from collections.abc import Iterator

import pytest

from tests.proxy import CountingProxy, Traffic, counted_storage
from tests.requests.commands import commands, upload, write_files

SLIDES = (30, 60)
# of the larger cohort these are held, so that requests that can go together do
HELD = ("import", "import again", "train, 1 epoch", "evaluate", "gather", "ingest again", "predict again")
HELD_S = 0.02
Counted = dict[str, dict[int, Traffic]]


@pytest.fixture(scope="session")
def proxy(s3: str) -> Iterator[CountingProxy]:
    """A proxy that the environment names as the server."""
    with counted_storage() as proxy:
        yield proxy


@pytest.fixture(scope="session")
def counted(s3: str, proxy: CountingProxy, tmp_path_factory: pytest.TempPathFactory) -> Counted:
    """What each command made pass, by its name and the number of slides."""
    found: Counted = {}
    for slides in SLIDES:
        folder, uri = tmp_path_factory.mktemp("requests"), f"{s3}/requests/{slides}"
        write_files(folder, slides)
        upload(folder, f"{uri}/files")
        for name, command in commands(uri, slides):
            proxy.latency_s = HELD_S if name in HELD and slides == SLIDES[1] else 0.0
            proxy.take()
            command()
            found.setdefault(name, {})[slides] = proxy.take()
    return found
