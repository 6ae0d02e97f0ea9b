"""Checks before every request: host, origin, token, path and body size; and headers on every response."""

from __future__ import annotations

import asyncio
import base64
import re
import secrets
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocketClose

from orthoproxy.core.errors import InputError
from orthoproxy.server.limits import RequestError

SMALL_BODY = 64 * 1024  # bytes of a request without an image
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
HOST = re.compile(r"(\[[\da-f:.]+\]|[\w.-]+)(?::(\d+))?", re.ASCII)  # name and port
PREFIX = re.compile(r"(/[\w.~-]+)+", re.ASCII)
CONTENT_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; object-src 'none'; base-uri 'self'; "
    "form-action 'self'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": CONTENT_POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}


def allowed_hosts(host: str, names: Sequence[str] = ()) -> list[str]:
    """List the names that a Host header may give; any name where the server listens on all addresses without names."""
    for name in names:
        match = HOST.fullmatch(name.lower().removeprefix("*."))
        if match is None or match[2]:
            raise InputError(name, field="names", expected="a host without scheme, port and path")
    if host in ("0.0.0.0", "::", "[::]"):
        return [*LOOPBACK, socket.gethostname(), *names] if names else ["*"]  # the token protects it
    own = f"[{host}]" if ":" in host and not host.startswith("[") else host
    return [own, *names, *(LOOPBACK if own in LOOPBACK else ())]


@dataclass(frozen=True)
class SecurityMiddleware:
    """ASGI middleware: only requests of the same origin, with the token, to a known path, with a bounded body."""

    app: ASGIApp
    hosts: Sequence[str]  # from `allowed_hosts`
    token: str | None
    paths: str  # a regular expression
    body_limits: Mapping[str, int]  # bytes, by path
    body_seconds: float

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] == "websocket":
            return await WebSocketClose(1008)(scope, receive, send)
        limit, received = self.body_limits.get(scope["path"], SMALL_BODY), 0
        deadline: float | None = 0.0  # until the first reading; None once the body is complete

        async def bounded_receive() -> Message:
            nonlocal received, deadline
            if deadline == 0:
                deadline = asyncio.get_running_loop().time() + self.body_seconds
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                raise RequestError("the request took too long to arrive", status=408) from None
            if not message.get("more_body"):
                deadline = None
            received += len(message.get("body", b""))
            if received > limit:
                raise too_large(limit)
            return message

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        headers = Headers(scope=scope)
        try:
            self.check(scope, headers, limit)
        except RequestError as error:
            return await error.response()(scope, receive, send_with_headers)
        if scope["method"] == "HEAD":
            scope = {**scope, "method": "GET"}  # the server leaves out the body
        if PREFIX.fullmatch(prefix := headers.get("x-forwarded-prefix", "")):  # which a proxy has removed
            scope = {**scope, "root_path": prefix, "path": prefix + scope["path"]}
        return await self.app(scope, bounded_receive, send_with_headers)

    def check(self, scope: Scope, headers: Headers, limit: int) -> None:
        """Raise `RequestError` for a request that must not reach the application."""
        host = headers.get("host", "")
        if not self.is_own(host):
            raise RequestError(
                f"unknown host {host!r}", status=400, hint="give the server this host name when it is started"
            )
        if not is_same_origin(scope["method"], headers):
            hint = "a proxy must pass the Host header, and the server must be given its host name when it is started"
            raise RequestError("requests from pages of another origin are not allowed", status=403, hint=hint)
        token = None if scope["path"] == "/health" else self.token
        if token is not None and not has_token(headers.get("authorization", ""), token):
            raise RequestError("missing or wrong token", status=401, hint="send Authorization: Bearer TOKEN")
        if not re.fullmatch(self.paths, scope["path"]):
            raise RequestError("not found", status=404)
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > limit:
            raise too_large(limit)

    def is_own(self, host: str) -> bool:
        """Return whether a Host header names this server, with any port."""
        match = HOST.fullmatch(host.lower())
        name, hosts = match[1] if match else "", map(str.lower, self.hosts)
        return any(name == own or (own.startswith("*") and name.endswith(own[1:])) for own in hosts)


def too_large(limit: int) -> RequestError:
    return RequestError("the request is too large", status=413, expected=f"at most {limit:,} bytes")


def is_same_origin(method: str, headers: Headers) -> bool:
    """Return whether no page of another origin sent a request; following a link to a page is allowed."""
    origin = headers.get("origin")
    if origin is not None and not _is_origin_of(origin.lower(), headers.get("host", "").lower()):
        return False
    if headers.get("sec-fetch-site", "none") in ("none", "same-origin"):
        return True
    follows_link = headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"
    return follows_link and method in ("GET", "HEAD")


def _is_origin_of(origin: str, host: str) -> bool:
    """Compare the names, and the ports unless a proxy has left out that of the Host header."""
    scheme, _, place = origin.partition("://")
    theirs, ours = HOST.fullmatch(place), HOST.fullmatch(host)
    if theirs is None or ours is None or theirs[1] != ours[1]:
        return False
    return ours[2] in (None, theirs[2] or {"http": "80", "https": "443"}.get(scheme))


def has_token(authorization: str, token: str) -> bool:
    """Return whether an Authorization header carries the token: as Bearer, or as the password of Basic."""
    scheme, _, given = authorization.partition(" ")
    if scheme.lower() == "basic":  # browsers ask for it by themselves
        try:
            given = base64.b64decode(given, validate=True).decode().partition(":")[2]
        except ValueError:
            return False
    elif scheme.lower() != "bearer":
        return False
    return secrets.compare_digest(given.encode(), token.encode())
