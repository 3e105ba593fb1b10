"""A proxy in front of an S3 server that fails or stalls when told to."""

import http.client
import threading
import time
import urllib.parse
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple

CODES = {403: "AccessDenied", 500: "InternalError"}
HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length"}


WRITES = ("PUT", "POST", "DELETE")


class Stop(NamedTuple):
    """A moment between two writes: a request that changes something, and what is done then.

    Args:
        at_write: number of the request, from 1.
        is_passed_on: the moment lies after the server got it; else before.
        action: true where the request is then passed on, and answered; else it or its answer is lost.
    """

    at_write: int
    is_passed_on: bool
    action: Callable[[], bool]

    def goes_on(self, *, is_passed_on: bool) -> bool:
        """False where this is the moment, and the request or its answer is lost."""
        return self.is_passed_on != is_passed_on or self.action()


class FaultyProxy:
    """Passes requests on, or not.

    Args:
        upstream: URL of the server behind.

    Attributes:
        every: refuse each request whose number this divides; 0 none.
        status: of the answer to a refused request; 0: the connection is cut without one.
        methods: of the requests that are refused.
        stall_s: hold every request for so long before passing it on.
        stop: what happens at one of the writes; None for nothing.
        writes: how many requests that change something have come.
        failed, stalled: how many requests were treated so.
    """

    def __init__(self, upstream: str) -> None:
        self.every, self.stall_s = 0, 0.0
        self.status, self.methods = 500, ("GET", "PUT", "POST", "DELETE", "HEAD")
        self.stop: Stop | None = None
        self.requests = self.failed = self.stalled = self.writes = 0
        self._lock = threading.Lock()
        self._upstream = urllib.parse.urlsplit(upstream).netloc
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def refuses(self, method: str) -> bool:
        """True where the next request is refused; stalls it first if so set."""
        with self._lock:
            self.requests += 1
            refused = bool(self.every) and self.requests % self.every == 0 and method in self.methods
            self.failed += refused
            self.stalled += self.stall_s > 0.0
        time.sleep(self.stall_s)
        return refused

    def stop_at(self, method: str) -> Stop:
        """What happens at the next request; nothing where it is not the write to stop at."""
        with self._lock:
            self.writes += method in WRITES
            if self.stop is not None and method in WRITES and self.writes == self.stop.at_write:
                return self.stop
            return Stop(self.writes, is_passed_on=False, action=lambda: True)

    def _handler(self) -> type[BaseHTTPRequestHandler]:  # noqa: C901 - methods of one class
        proxy, upstream = self, self._upstream

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                body = _body_of(self)
                if proxy.refuses(self.command):
                    self._refuse(proxy.status)
                    return
                stop = proxy.stop_at(self.command)
                if not stop.goes_on(is_passed_on=False):
                    return
                behind = http.client.HTTPConnection(upstream, timeout=120)
                try:
                    _ask(behind, self, body)
                    answer = behind.getresponse()
                    content = answer.read()
                    if not stop.goes_on(is_passed_on=True):
                        return
                    length = answer.getheader("Content-Length") if self.command == "HEAD" else None
                    self._answer(answer.status, answer.getheaders(), content, length)
                finally:
                    behind.close()

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_any  # noqa: N815 - the names http.server calls

            def _refuse(self, status: int) -> None:
                self.close_connection = not status
                if status:
                    content = f"<Error><Code>{CODES[status]}</Code></Error>".encode()
                    self._answer(status, [("Content-Type", "application/xml")], content)

            def _answer(
                self, status: int, headers: list[tuple[str, str]], content: bytes, length: str | None = None
            ) -> None:
                self.send_response_only(status)
                for name, value in headers:
                    if name.lower() not in HOP_BY_HOP:
                        self.send_header(name, value)
                self.send_header("Content-Length", length or str(len(content)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(content)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name http.server calls it by
                pass

        return Handler


def _ask(behind: http.client.HTTPConnection, request: BaseHTTPRequestHandler, body: bytes) -> None:
    # the request is signed for the host it names
    behind.putrequest(request.command, request.path, skip_host=True, skip_accept_encoding=True)
    for name, value in request.headers.items():
        if name.lower() not in {*HOP_BY_HOP, "expect"}:
            behind.putheader(name, value)
    behind.putheader("Content-Length", str(len(body)))
    behind.endheaders(body)


def _body_of(request: BaseHTTPRequestHandler) -> bytes:
    """All of it; Ray's S3 client, unlike s3fs, sends its uploads chunked and waits until they are taken."""
    if request.headers.get("Transfer-Encoding") != "chunked":
        return request.rfile.read(int(request.headers.get("Content-Length") or 0))
    chunks = []
    while size := int(request.rfile.readline().split(b";")[0], 16):
        chunks.append(request.rfile.read(size))
        request.rfile.readline()
    while request.rfile.readline().strip():
        pass
    return b"".join(chunks)
