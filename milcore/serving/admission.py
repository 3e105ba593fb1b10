"""Bounded queue of each model.

A place is taken before the body of a request is read, so that the bodies in memory are bounded too. Ray Serve's own
limit (``max_queued_requests``) is checked after that, and refuses more than it has to where requests come at once.
"""

import contextlib
from collections.abc import Iterator

from milcore.serving.request_error import RequestError

RETRY_AFTER_S = 1


class Admission:
    """Places for requests to a model, in work or waiting; of one event loop.

    Args:
        name: of the model.
        places: how many.
    """

    def __init__(self, name: str, places: int) -> None:
        self._name, self._places = name, places
        self.length = 0

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        """Hold a place for the length of the context.

        Raises:
            RequestError: 429, all are taken.
        """
        if self.length >= self._places:
            raise RequestError(
                429,
                f"model {self._name}: expected fewer than {self._places} requests in work and waiting, got one more; "
                "send it again later",
                {"Retry-After": str(RETRY_AFTER_S)},
            )
        self.length += 1
        try:
            yield
        finally:
            self.length -= 1
