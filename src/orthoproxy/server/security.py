"""What stands before every request: who may ask, how often, how much, and for which paths."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import json
import logging
import re
import secrets
import socket
import time
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import urlsplit

from orthoproxy.core.errors import InputError
from orthoproxy.server.limits import DEFAULT, Limits, Pace, Refused

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

LOG = logging.getLogger("orthoproxy.serve")
SHORTEST_TOKEN = 16
SMALL_BODY = 64 * 1024  # of a request that carries no picture
CONTENT_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; object-src 'none'; base-uri 'self'; "
    "form-action 'self'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": CONTENT_POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}


def is_loopback(host: str) -> bool:
    """Tell whether an address is reached from this machine alone.

    Parameters
    ----------
    host
        A name or an address.

    Examples
    --------
    >>> is_loopback("127.0.0.1"), is_loopback("localhost"), is_loopback("::1"), is_loopback("0.0.0.0")
    (True, True, True, False)
    """
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def check_token(host: str, token: str | None) -> None:
    """Refuse to listen beyond this machine without a token, and tokens that can be guessed.

    Parameters
    ----------
    host
        The address to listen on.
    token
        Or None.

    Raises
    ------
    InputError
        With the remedy.

    Examples
    --------
    >>> check_token("127.0.0.1", None)
    >>> check_token("0.0.0.0", None)
    Traceback (most recent call last):
    ...
    orthoproxy.core.errors.InputError: --host 0.0.0.0 can be reached by others and needs a token; set ORTHOPROXY_TOKEN or --token, at least 16 characters
    """  # noqa: E501
    if token is None and not is_loopback(host):
        raise InputError(
            f"--host {host} can be reached by others and needs a token; set ORTHOPROXY_TOKEN or --token, at least "
            f"{SHORTEST_TOKEN} characters"
        )
    if token is not None and (len(token) < SHORTEST_TOKEN or not token.isascii() or not token.isprintable()):
        raise InputError(
            f"--token: give {SHORTEST_TOKEN} or more printable ASCII characters, such as {secrets.token_urlsafe(24)}"
        )


def names_of(host: str, further: Sequence[str] = ()) -> set[str]:
    """Return the names by which a server may be called in a request's Host.

    Parameters
    ----------
    host
        The address it listens on.
    further
        Names under which it is known besides, for example behind a proxy.

    Returns
    -------
    set of str
        Lower case, without ports. Where the server listens on all addresses, any plain address is one of its names
        too; see `Guard`.

    Examples
    --------
    >>> sorted(names_of("127.0.0.1"))
    ['127.0.0.1', '::1', 'localhost']
    """
    names = {host.strip("[]").lower(), *(name.lower() for name in further)}
    if is_loopback(host) or is_everywhere(host):
        names |= {"127.0.0.1", "::1", "localhost"}
    if is_everywhere(host):
        names |= {socket.gethostname().lower(), socket.getfqdn().lower()}
    return names


def is_everywhere(host: str) -> bool:
    """Whether a server that listens there is reached by any of the machine's addresses."""
    return host in ("0.0.0.0", "::", "[::]", "")


class Door:
    """Tells who knows the token, in constant time.

    Parameters
    ----------
    token
        None where everybody on this machine may come in.
    port
        Part of the cookie's name, since cookies of several servers on one machine would overwrite each other.

    Examples
    --------
    >>> door = Door("a-long-enough-token", 7860)
    >>> door.knows("another-token-here"), door.knows("a-long-enough-token")
    (False, True)
    """

    def __init__(self, token: str | None, port: int) -> None:
        self.token, self.cookie = token, f"orthoproxy-{port}"
        self.session = secrets.token_urlsafe(32)  # a new one a start; the token itself lies in no browser

    def knows(self, token: str) -> bool:
        """Compare a token with the right one.

        Parameters
        ----------
        token
            What was given.
        """
        return self.token is None or _same(token, self.token)

    def lets_in(self, headers: dict[str, str]) -> bool | None:
        """Look at a request's headers: True for the token or the cookie, False for a wrong token, None for nothing.

        Parameters
        ----------
        headers
            With names in lower case.
        """
        if self.token is None:
            return True
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            return self.knows(given.strip())
        try:
            cookie = SimpleCookie(headers.get("cookie", "")).get(self.cookie)
        except CookieError:
            return None
        return True if cookie is not None and _same(cookie.value, self.session) else None

    def set_cookie(self, secure: bool) -> str:
        """Return the header that a browser gets once it gave the token.

        Parameters
        ----------
        secure
            Whether it came by HTTPS.
        """
        return f"{self.cookie}={self.session}; Path=/; HttpOnly; SameSite=Strict" + ("; Secure" if secure else "")


def _same(a: str, b: str) -> bool:
    """Compare digests, so that the time tells neither where two texts differ nor how long they are."""
    digests = (hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest() for text in (a, b))
    return hmac.compare_digest(*digests)


class Guard:
    """Stands before an ASGI application, and before all that is mounted in it.

    A request is looked at in this order: Host and Origin (403), rate (429), token (401), path (404), number at once
    (503), size (413). Every answer gets the headers that keep a page to itself, and an error that nobody expected
    becomes a 500 that tells nothing.

    Parameters
    ----------
    app
        What is guarded.
    door
        Who may come in.
    names
        From `names_of`.
    any_address
        Whether any plain address may be in Host; a name that an attacker chose never is.
    limits
        Sizes and rates.
    paths
        Patterns of all paths that there are; another is 404, whatever the application would make of it.
    public
        Paths that need no token.
    body_limit
        Path to the greatest number of bytes of its body.

    Examples
    --------
    >>> async def app(scope, receive, send): ...
    >>> guard = Guard(app, Door(None, 7860), {"localhost"}, paths=[r"/health"])
    >>> guard.serves("/health"), guard.serves("/gradio_api/file=/etc/passwd")
    (True, False)
    """

    def __init__(
        self,
        app: App,
        door: Door,
        names: set[str],
        any_address: bool = False,
        limits: Limits = DEFAULT,
        paths: Sequence[str] = (),
        public: Sequence[str] = (),
        body_limit: Callable[[str], int] = lambda path: SMALL_BODY,
    ) -> None:
        self.app, self.door, self.names, self.any_address, self.limits = app, door, names, any_address, limits
        self.public, self.body_limit = set(public), body_limit
        self._paths = re.compile("|".join(f"(?:{path})" for path in paths))
        self._pace = Pace(limits.requests_per_second, limits.burst, limits.pace_seconds)
        self._failures = Pace(limits.failures_per_minute / 60, limits.failures_per_minute, 0.0)
        self._at_once = self._bytes = 0

    def serves(self, path: str) -> bool:
        """Tell whether there is such a path.

        Parameters
        ----------
        path
            Percent-decoded.
        """
        return self._paths.fullmatch(path) is not None

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            await self._answer(scope, receive, _Answer(scope, send))
        else:  # nothing here speaks WebSocket
            await receive()
            await send({"type": "websocket.close", "code": 1008})

    async def _answer(self, scope: MutableMapping[str, Any], receive: Receive, answer: _Answer) -> None:
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        counted, body = False, None
        try:
            self._check_origin(scope, headers)
            await self._keep_pace(scope)
            self._check_token(scope, headers)
            if not self.serves(scope["path"]):
                raise Refused(404, "there is nothing here")
            if self._at_once >= self.limits.requests_at_once:
                raise Refused(503, "too many requests at once; try again in a second")
            self._at_once += 1
            counted = True
            body = _Body(self, receive, answer, headers, self.body_limit(scope["path"]))
            await self.app(scope, body.receive, answer.send)
            if answer.refusal is not None:
                raise answer.refusal
        except Refused as refusal:
            await answer.refuse(refusal, headers, self.door.token is not None)
        except Exception:
            LOG.exception("%s %s failed", scope["method"], scope["path"])
            await answer.refuse(Refused(500, "something went wrong here; the server's log has the details"), headers)
        finally:
            self._at_once -= counted
            if body is not None:
                self._bytes -= body.size

    def hold(self, size: int) -> bool:
        """Count bytes of a body in; whether there is room for them.

        Parameters
        ----------
        size
            How many.
        """
        self._bytes += size
        return self._bytes <= self.limits.bytes_at_once

    def _check_origin(self, scope: MutableMapping[str, Any], headers: dict[str, str]) -> None:
        """Refuse names that are not ours, as a page that points its own name at this machine sends, and other pages."""
        hosts = [value for name, value in scope["headers"] if name == b"host"]
        if len(hosts) != 1 or not self._is_ours(headers["host"]):
            raise Refused(403, "this server is not known by the name that the request gives")
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc.lower() != headers["host"].lower():
            raise Refused(403, "pages of other origins may not ask here")
        if headers.get("sec-fetch-site") in ("cross-site", "same-site"):
            follows_link = headers.get("sec-fetch-mode") == "navigate" and scope["method"] in ("GET", "HEAD")
            if not follows_link or headers.get("sec-fetch-dest") != "document":
                raise Refused(403, "pages of other origins may not ask here")

    def _is_ours(self, host: str) -> bool:
        try:
            parts = urlsplit(f"//{host}")
            name, _ = parts.hostname or "", parts.port
        except ValueError:
            return False
        if parts.netloc != host or parts.username is not None:
            return False
        return name in self.names or (self.any_address and _is_address(name))

    async def _keep_pace(self, scope: MutableMapping[str, Any]) -> None:
        wait = self._pace.delay(_client(scope))
        if wait is None:
            raise Refused(429, "too many requests; slow down")
        if wait:
            await asyncio.sleep(wait)

    def _check_token(self, scope: MutableMapping[str, Any], headers: dict[str, str]) -> None:
        if scope["path"] in self.public:
            if scope["method"] == "POST" and self.door.token is not None:
                self._count_failure(scope, count=False)
            return
        known = self.door.lets_in(headers)
        if known is False:
            self._count_failure(scope)
        if not known:
            raise Refused(401, "a token is needed: Authorization: Bearer TOKEN, or log in at /login")

    def failed(self, scope: MutableMapping[str, Any]) -> None:
        """Count a wrong token.

        Parameters
        ----------
        scope
            Of the request that gave it.

        Raises
        ------
        Refused
            429 after too many.
        """
        self._count_failure(scope)

    def _count_failure(self, scope: MutableMapping[str, Any], count: bool = True) -> None:
        if self._failures.delay(_client(scope), count) is None:
            raise Refused(429, "too many wrong tokens; try again in a minute")


def _is_address(name: str) -> bool:
    try:
        return bool(ipaddress.ip_address(name))
    except ValueError:
        return False


def _client(scope: MutableMapping[str, Any]) -> str:
    """The client's address; of IPv6 the network of which a machine has all addresses."""
    address = (scope.get("client") or ("unknown",))[0]
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    return str(ipaddress.ip_network((parsed, 64), strict=False)) if parsed.version == 6 else address


class _Answer:
    """What goes back: once, with our headers, and a refusal in place of what has not begun yet."""

    def __init__(self, scope: MutableMapping[str, Any], send: Send) -> None:
        self.scope, self._send = scope, send
        self.begun = False
        self.refusal: Refused | None = None

    async def send(self, message: Message) -> None:
        if self.refusal is not None and not self.begun:
            return  # the application's own words about a body that was cut off; ours follow
        if message["type"] == "http.response.start":
            self.begun = True
            given = list(message.get("headers", []))
            names = {name.lower() for name, _ in given}
            ours = [(name.encode(), value.encode()) for name, value in HEADERS.items() if name.encode() not in names]
            message = {**message, "headers": [pair for pair in given if pair[0].lower() != b"server"] + ours}
        await self._send(message)

    async def refuse(self, refusal: Refused, headers: dict[str, str], has_login: bool = False) -> None:
        """Send a refusal as JSON; a person in a browser who needs to log in is led there."""
        if self.begun:
            return
        self.refusal = None
        status, more = refusal.status, []
        if status == 401:
            more = [(b"www-authenticate", b"Bearer")]
            if has_login and self.scope["method"] == "GET" and "text/html" in headers.get("accept", ""):
                status, more = 303, [(b"location", b"/login")]
        if status in (429, 503):
            more = [(b"retry-after", b"1")]
        if status in (408, 413):
            more = [(b"connection", b"close")]  # what is left of the body is not read
        content = json.dumps({"detail": refusal.reason}).encode()
        more += [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
        await self.send({"type": "http.response.start", "status": status, "headers": more})
        await self.send({"type": "http.response.body", "body": content})


class _Body:
    """A request's body, so far as it keeps to its size and time."""

    def __init__(self, guard: Guard, receive: Receive, answer: _Answer, headers: dict[str, str], most: int) -> None:
        self._guard, self._receive, self._answer, self.most = guard, receive, answer, most
        self._until, self.size, self._whole = time.monotonic() + guard.limits.body_seconds, 0, False
        announced = headers.get("content-length", "0")
        if not announced.isdecimal() or int(announced) > most:
            raise self._too_large()

    def _too_large(self) -> Refused:
        return Refused(413, f"the request is larger than the {self.most:,} bytes that are accepted here")

    async def receive(self) -> Message:
        if self._whole:  # the application waits for the client to go
            return await self._receive()
        try:
            left = max(self._until - time.monotonic(), 0)
            message = await asyncio.wait_for(self._receive(), left)
        except TimeoutError:
            raise self._refuse(Refused(408, "the request took too long to arrive")) from None
        part = len(message.get("body", b""))
        self.size += part
        self._whole = message["type"] != "http.request" or not message.get("more_body", False)
        if not self._guard.hold(part):
            raise self._refuse(Refused(503, "too many large requests at once; try again in a second"))
        if self.size > self.most:
            raise self._refuse(self._too_large())
        return message

    def _refuse(self, refusal: Refused) -> Refused:
        self._answer.refusal = refusal  # the application may turn the exception into something else
        return refusal
