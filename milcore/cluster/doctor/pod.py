"""Program of the doctor's pods: each finding a JSON object on its line."""

import json
import os
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from urllib.parse import urlsplit

from milcore.cluster.doctor.finding import Finding
from milcore.cluster.doctor.object_store import check_uri, endpoint_finding, store_findings

PORT = 8265
REACH, LISTEN, LISTENING = "--reach", "--listen", "listening"
REACHED, CONTROL = "reached", "control"
TRIES, CONNECT_S = 3, 2.0


def main(arguments: Sequence[str]) -> None:
    """Check a store and listen (``--listen [URI]``), or try to connect (``--reach HOST``)."""
    mode, *places = arguments
    if mode == REACH:
        _say({REACHED: reaches(places[0], PORT), CONTROL: has_network()})
        return
    for finding in _findings(places):
        _say(finding._asdict())
    with socket.create_server(("", PORT)) as server:
        _say({LISTENING: PORT})
        while True:
            server.accept()[0].close()


def _findings(places: Sequence[str]) -> Iterator[Finding]:
    if places:
        yield from store_findings(check_uri(places[0]))
    else:
        yield endpoint_finding()


def reaches(host: str, port: int) -> bool:
    """True where a port is open at the last of some tries.

    The rules of a new pod take a moment.
    """
    for _ in range(TRIES):
        try:
            socket.create_connection((host, port), timeout=CONNECT_S).close()
            is_open = True
        except OSError:
            is_open = False
        time.sleep(1.0)
    return is_open


def has_network() -> bool:
    """True where this pod reaches the API server or the object store.

    One that reaches nothing says nothing of a policy about one port.
    """
    api = os.environ.get("KUBERNETES_SERVICE_HOST", ""), os.environ.get("KUBERNETES_SERVICE_PORT", "443")
    store = urlsplit(os.environ.get("AWS_ENDPOINT_URL", ""))
    places = [api, (store.hostname or "", str(store.port or (443 if store.scheme == "https" else 80)))]
    return any(reaches(host, int(port)) for host, port in places if host)


def _say(values: dict[str, object]) -> None:
    print(json.dumps(values), flush=True)  # noqa: T201 - its output is what the doctor reads


if __name__ == "__main__":
    main(sys.argv[1:])
