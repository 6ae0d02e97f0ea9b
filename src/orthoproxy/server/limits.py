"""Size and concurrency limits of the server, and the error that a request gets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from orthoproxy.core.errors import InputError

try:
    from starlette.responses import JSONResponse
except ImportError as error:
    raise InputError("fastapi is not installed", hint="pip install 'orthoproxy[search]'") from error

STATUS_HEADERS = {
    401: {"www-authenticate": 'Basic realm="orthoproxy", charset="UTF-8"'},
    408: {"connection": "close"},
    413: {"connection": "close"},
    503: {"retry-after": "1"},
}


@dataclass(eq=False)
class RequestError(InputError):
    """A request that the server does not fulfill: an `InputError` with the HTTP status of its response.

    Examples
    --------
    >>> error = RequestError("5,000,000 bytes", status=413, field="image", expected="at most 1,000,000")
    >>> error.status, str(error)
    (413, 'image: 5,000,000 bytes (expected at most 1,000,000)')
    """

    status: int = field(default=422, kw_only=True)

    def __reduce__(self) -> tuple[Callable[..., InputError], tuple[str]]:
        make, arguments = super().__reduce__()
        return partial(make, status=self.status), arguments

    def response(self) -> JSONResponse:
        """Return the error as JSON, without paths of this machine."""
        content = {"problem": self.problem, "field": self.field, "expected": self.expected, "hint": self.hint}
        return JSONResponse({"error": content}, self.status, STATUS_HEADERS.get(self.status))


@dataclass(frozen=True)
class Limits:
    """What the server accepts from a client, and how much it does at once.

    Parameters
    ----------
    upload_bytes
        Largest image file, in bytes.
    pixels
        Largest image, in pixels, as its header states before anything is decoded.
    decode_seconds
        Deadline for decoding an image. A worker that misses it is killed and replaced.
    decode_workers
        Processes that decode images.
    body_seconds
        Deadline for the body of a request to arrive.
    searches
        Searches and uploads in progress; one more gets status 503.
    connections
        Open connections; one more gets status 503.

    Examples
    --------
    >>> Limits(upload_bytes=1_000_000).pixels
    50000000
    """

    upload_bytes: int = 20_000_000
    pixels: int = 50_000_000
    decode_seconds: float = 10.0
    decode_workers: int = 2
    body_seconds: float = 60.0
    searches: int = 32
    connections: int = 512
