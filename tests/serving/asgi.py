"""Requests to an ASGI application without a server; the body may come in parts."""

import json
from collections.abc import AsyncIterator, Mapping
from typing import Any, NamedTuple

from fastapi import FastAPI


class Reply(NamedTuple):
    """Answer of the application."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        """The one line of an error, which is all that its body holds."""
        values = self.json()
        assert list(values) == ["error"]
        assert "\n" not in values["error"]
        return str(values["error"])


async def parts_of(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


async def send(
    application: FastAPI,
    method: str,
    path: str,
    body: bytes | AsyncIterator[bytes] = b"",
    headers: Mapping[str, str] | None = None,
) -> Reply:
    """Send a request; Content-Length is that of a body of bytes, where the headers have none."""
    given = {name.lower(): value for name, value in (headers or {}).items()}
    if isinstance(body, bytes):
        given = {"content-length": str(len(body)), **given}
        body = parts_of(body)
    messages: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        try:
            return {"type": "http.request", "body": await anext(body), "more_body": True}
        except StopAsyncIteration:
            return {"type": "http.request", "body": b"", "more_body": False}

    async def answer(message: Any) -> None:
        messages.append(message)

    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http",
        "path": path, "raw_path": path.encode(), "root_path": "", "query_string": b"", "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80), "headers": [(name.encode(), value.encode()) for name, value in given.items()],
    }  # fmt: skip
    await application(scope, receive, answer)
    start, *rest = messages
    found = {name.decode().lower(): value.decode() for name, value in start["headers"]}
    return Reply(start["status"], found, b"".join(message.get("body", b"") for message in rest))
