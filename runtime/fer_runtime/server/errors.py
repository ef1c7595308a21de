"""The error that refuses a request, with its status and headers."""

from __future__ import annotations

RETRY_SECONDS = 1


class RequestError(Exception):
    """A request is refused: the status and the reason that the client gets.

    Args:
        status: of HTTP.
        reason: one word for the metrics.
        message: for the client.
        retry: seconds after which a client that gets 503 should come again.
    """

    def __init__(self, status: int, reason: str, message: str, *, retry: int = RETRY_SECONDS) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.retry = retry

    @property
    def headers(self) -> dict[str, str]:
        """HTTP headers of the answer, by its status."""
        if self.status == 503:
            return {"Retry-After": str(self.retry)}
        if self.status == 401:
            return {"WWW-Authenticate": "Bearer"}
        # The rest of the body was not read.
        return {"Connection": "close"} if self.status in (408, 413) else {}
