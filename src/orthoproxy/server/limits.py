"""Size and concurrency limits of the server, and the error that a request gets."""

from __future__ import annotations

from dataclasses import dataclass, field

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
    """A request that the server does not fulfill: an `InputError` with the HTTP status of its response."""

    status: int = field(default=422, kw_only=True)

    def response(self) -> JSONResponse:
        """Return the error as JSON, without paths of this machine."""
        content = {name: getattr(self, name) for name in ("problem", "field", "expected", "hint")}
        return JSONResponse({"error": content}, self.status, STATUS_HEADERS.get(self.status))


@dataclass(frozen=True)
class Limits:
    """What the server accepts from a client, and how much it does at once."""

    upload_bytes: int = 20_000_000  # of an uploaded file
    pixels: int = 50_000_000  # of an uploaded image, checked before it is decoded
    decode_seconds: float = 10.0  # a worker that takes longer is killed and replaced
    decode_workers: int = 2
    body_seconds: float = 60.0  # for the body of a request to arrive
    searches: int = 32  # searches and uploads in progress; one more gets status 503
    searches_per_client: int = 8  # one more waits, its body unread
    connections: int = 512  # one more gets status 503
