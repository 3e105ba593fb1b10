"""Errors of a request: an HTTP status and one line."""

from collections.abc import Mapping

from milcore.errors import MILError


class RequestError(MILError):
    """Request that is answered by an error.

    Args:
        status: of HTTP.
        line: for the client.
        headers: of the answer.
    """

    def __init__(self, status: int, line: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(line)
        self.status = status
        self.headers = dict(headers or {})
