"""A proxy in front of an S3 server that fails or stalls when told to."""

import http.client
import threading
import time
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

CODES = {403: "AccessDenied", 500: "InternalError"}
HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length"}


class FaultyProxy:
    """Passes requests on, or not.

    Args:
        upstream: URL of the server behind.

    Attributes:
        every: refuse each request whose number this divides; 0 none.
        status: of the answer to a refused request; 0: the connection is cut without one.
        methods: of the requests that are refused.
        stall_s: hold every request for so long before passing it on.
        failed, stalled: how many requests were treated so.
    """

    def __init__(self, upstream: str) -> None:
        self.every, self.stall_s = 0, 0.0
        self.status, self.methods = 500, ("GET", "PUT", "POST", "DELETE", "HEAD")
        self.requests = self.failed = self.stalled = 0
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

    def _handler(self) -> type[BaseHTTPRequestHandler]:  # noqa: C901 - methods of one class
        proxy, upstream = self, self._upstream

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                body = _body_of(self)
                if proxy.refuses(self.command):
                    self._refuse(proxy.status)
                    return
                behind = http.client.HTTPConnection(upstream, timeout=120)
                try:
                    # the request is signed for the host it names
                    behind.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
                    for name, value in self.headers.items():
                        if name.lower() not in {*HOP_BY_HOP, "expect"}:
                            behind.putheader(name, value)
                    behind.putheader("Content-Length", str(len(body)))
                    behind.endheaders(body)
                    answer = behind.getresponse()
                    content = answer.read()
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
