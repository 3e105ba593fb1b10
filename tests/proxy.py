"""A proxy in front of an S3 server that counts requests and holds each for a set time.

In this process (``CountingProxy``), or in one of its own (``ProxyProcess``), where what is measured keeps its core.
Every connection has one to the server behind, and both are kept. Bytes are passed on as they are, since requests are
signed.
"""

import asyncio
import contextlib
import json
import os
import re
import subprocess
import sys
import threading
import urllib.parse
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, NamedTuple, Self

import pytest
import s3fs

READ_BYTES = 1 << 20
WAITING_CONNECTIONS = 1024
END_OF_HEAD = b"\r\n\r\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
STATUS_WITHOUT_BODY = (204, 304)
FAULTS_AT_ONCE = 64
CODES = {403: "AccessDenied", 500: "InternalError"}
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding: *chunked", re.IGNORECASE)
_EXPECT = re.compile(rb"\r\nexpect: *100-continue", re.IGNORECASE)
_COPY = re.compile(rb"\r\nx-amz-copy-source:", re.IGNORECASE)
_CLOSE = re.compile(rb"\r\nconnection: *close", re.IGNORECASE)


class Request(NamedTuple):
    """A request to S3.

    Args:
        kind: GET, HEAD, LIST, PUT, COPY, DELETE, PART, MULTIPART (begins, ends or gives up an upload) or BUCKET.
        key: of the object without the bucket, or the prefix of a listing.
        status: of the answer.
        sent: bytes of its body.
        received: bytes of the answer's body.
    """

    kind: str
    key: str
    status: int
    sent: int
    received: int


class Traffic(NamedTuple):
    """Requests in the order of their answers, and how many were in flight together at most."""

    requests: list[Request]
    most_at_once: int


class Fault(NamedTuple):
    """What goes wrong with a request.

    Args:
        status: the request is refused with it; 0: the connection is cut; None: the request is passed on.
        is_answered: called once the server has answered: False where the answer is lost; None: it is not.
    """

    status: int | None = None
    is_answered: Callable[[], bool] | None = None


class _Connection(NamedTuple):
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter


def request_kind(head: bytes) -> tuple[str, str]:
    """Kind and key of a request by its head."""
    method, target, _ = head.partition(b"\r\n")[0].decode().split(" ")
    parts = urllib.parse.urlsplit(target)
    query = urllib.parse.parse_qs(parts.query, keep_blank_values=True)
    _, _, key = urllib.parse.unquote(parts.path).lstrip("/").partition("/")
    if {"uploads", "uploadId"} & query.keys():
        return ("PART" if method == "PUT" else "MULTIPART"), key
    if method == "POST" and "delete" in query:
        return "DELETE", ""
    if key:
        return ("COPY" if _COPY.search(head) else method), key
    is_listing = method == "GET" and not {"location", "versioning"} & query.keys()
    return ("LIST", query.get("prefix", [""])[0]) if is_listing else ("BUCKET", "")


def totals(traffic: Traffic) -> dict[str, int]:
    """Number of requests in all and by kind, bytes of objects read and written, and the most at once."""
    requests = traffic.requests
    return {
        "requests": len(requests),
        **dict(sorted(Counter(request.kind for request in requests).items())),
        "bytes_read": sum(request.received for request in requests if request.kind == "GET"),
        "bytes_written": sum(request.sent for request in requests if request.kind in {"PUT", "PART"}),
        "most_at_once": traffic.most_at_once,
    }


class CountingProxy:
    """Passes requests on from a thread of this process.

    Args:
        upstream: URL of the server behind.
        fault_of: what goes wrong with a request of this method, called in a thread of its own, so that it may wait;
            None: nothing.

    Attributes:
        latency_s: how long each request is held.
    """

    def __init__(self, upstream: str, fault_of: Callable[[str], Fault] | None = None) -> None:
        self.latency_s = 0.0
        self._fault_of = fault_of
        self._threads = ThreadPoolExecutor(FAULTS_AT_ONCE)
        self._requests: list[Request] = []
        self._in_flight = self._most_at_once = 0
        behind = urllib.parse.urlsplit(upstream)
        self._upstream = behind.hostname, behind.port
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._server: asyncio.Server = self._run(
            asyncio.start_server(self._serve, "127.0.0.1", 0, limit=READ_BYTES, backlog=WAITING_CONNECTIONS)
        )

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def take(self) -> Traffic:
        """What has passed since the last call."""

        async def take() -> Traffic:  # in the thread that answers: what a client has got, is counted
            taken = Traffic(self._requests, self._most_at_once)
            self._requests, self._most_at_once = [], self._in_flight
            return taken

        traffic: Traffic = self._run(take())
        return traffic

    def close(self) -> None:
        self._run(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._threads.shutdown(wait=False)

    async def _stop(self) -> None:
        self._server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        client, server = _Connection(reader, writer), None
        try:
            is_open = True
            while is_open:
                head = await client.reader.readuntil(END_OF_HEAD)
                if server is None or server.reader.at_eof():  # the server closes what is idle
                    server = _Connection(*await asyncio.open_connection(*self._upstream, limit=READ_BYTES))
                is_open = await self._pass_on(head, client, server)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # one of both has gone
        finally:
            for connection in filter(None, (client, server)):
                connection.writer.close()

    async def _pass_on(self, head: bytes, client: _Connection, server: _Connection) -> bool:
        """Pass one request on, and its answer back; False where no more follow on this connection."""
        self._in_flight += 1
        self._most_at_once = max(self._most_at_once, self._in_flight)
        try:
            fault = Fault()
            if self._fault_of is not None:
                fault = await self._in_thread(self._fault_of, head.partition(b" ")[0].decode())
            if _EXPECT.search(head):
                client.writer.write(CONTINUE)
            await asyncio.sleep(self.latency_s)
            if fault.status is not None:
                return await _refuse(head, client, fault.status)
            return await self._exchange(_EXPECT.sub(b"", head), client, server, fault)
        finally:
            self._in_flight -= 1

    async def _in_thread(self, function: Callable[..., Any], *arguments: object) -> Any:
        return await self._loop.run_in_executor(self._threads, function, *arguments)

    async def _exchange(self, head: bytes, client: _Connection, server: _Connection, fault: Fault) -> bool:
        server.writer.write(head)
        sent = await _copy_body(head, client.reader, server.writer)
        answer = await server.reader.readuntil(END_OF_HEAD)
        if fault.is_answered is not None and not await self._in_thread(fault.is_answered):
            return False
        client.writer.write(answer)
        status, received = int(answer.split(b" ", 2)[1]), 0
        if not head.startswith(b"HEAD ") and status not in STATUS_WITHOUT_BODY:
            received = await _copy_body(answer, server.reader, client.writer)
        self._requests.append(Request(*request_kind(head), status, sent, received))
        return not _CLOSE.search(answer)


async def _refuse(head: bytes, client: _Connection, status: int) -> bool:
    """Answer without asking the server, or cut the connection; what the client sends is read to its end."""
    async for _ in _body(head, client.reader):
        pass
    if not status:
        return False
    content = b"" if head.startswith(b"HEAD ") else f"<Error><Code>{CODES[status]}</Code></Error>".encode()
    line = f"HTTP/1.1 {status} Refused\r\nContent-Type: application/xml\r\nContent-Length: {len(content)}\r\n\r\n"
    client.writer.write(line.encode() + content)
    await client.writer.drain()
    return True


async def _copy_body(head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> int:
    """Copy what follows a head; its bytes, with the lines between chunks."""
    size = 0
    async for part in _body(head, reader):
        size += len(part)
        writer.write(part)
        await writer.drain()
    return size


def _body(head: bytes, reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    return _chunks(reader) if _CHUNKED.search(head) else _parts(head, reader)


async def _parts(head: bytes, reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    length = _LENGTH.search(head)
    left = int(length[1]) if length else 0
    while left:
        part = await reader.read(min(left, READ_BYTES))
        if not part:
            raise asyncio.IncompleteReadError(part, left)
        left -= len(part)
        yield part


async def _chunks(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    size = 1
    while size:
        line = await reader.readuntil(b"\r\n")
        size = int(line.split(b";")[0], 16)
        yield line + (await reader.readexactly(size + 2) if size else b"")
    line = b""
    while line != b"\r\n":  # trailers
        line = await reader.readuntil(b"\r\n")
        yield line


class ProxyProcess:
    """The proxy in a process of its own, which ends with the context."""

    def __init__(self, upstream: str) -> None:
        command = [sys.executable, "-m", "tests.proxy", upstream]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.url: str = self._answer()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.communicate(timeout=60)

    def hold(self, seconds: float) -> None:
        """Hold each request for so long from now on."""
        self._ask(["hold", seconds])

    def take(self) -> dict[str, int]:
        """``totals`` since the last call."""
        taken: dict[str, int] = self._ask(["take"])
        return taken

    def _ask(self, question: list[object]) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{json.dumps(question)}\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())


def main(arguments: Sequence[str]) -> None:
    """Serve until the input ends; each line of it is answered by one, in JSON."""
    proxy = CountingProxy(arguments[0])
    sys.stdout.write(f"{json.dumps(proxy.url)}\n")
    sys.stdout.flush()
    for line in sys.stdin:
        question, *values = json.loads(line)
        if question == "hold":
            (proxy.latency_s,) = values
        answer = totals(proxy.take()) if question == "take" else None
        sys.stdout.write(f"{json.dumps(answer)}\n")
        sys.stdout.flush()
    proxy.close()


@contextlib.contextmanager
def counted_storage(fault_of: Callable[[str], Fault] | None = None) -> Iterator[CountingProxy]:
    """A proxy in front of the tests' server, which the environment names for the length of the context."""
    with pytest.MonkeyPatch.context() as environment:
        proxy = CountingProxy(os.environ["AWS_ENDPOINT_URL"], fault_of)
        environment.setenv("AWS_ENDPOINT_URL", proxy.url)
        s3fs.S3FileSystem.clear_instance_cache()
        yield proxy
        proxy.close()
    s3fs.S3FileSystem.clear_instance_cache()


if __name__ == "__main__":
    main(sys.argv[1:])
