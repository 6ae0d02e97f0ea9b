"""Start the server: open catalogs, load models, and listen until Ctrl-C."""

from __future__ import annotations

import ipaddress
import logging
import math
import os
import secrets
import socket
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from itertools import count
from pathlib import PurePosixPath
from urllib.parse import urlsplit

import uvicorn

from orthoproxy.catalog.catalog import Catalog
from orthoproxy.core.errors import InputError
from orthoproxy.embedding.onnx_embedder import load_model
from orthoproxy.server.app import make_app
from orthoproxy.server.limits import Limits
from orthoproxy.server.service import Service

MIN_TOKEN_LENGTH = 16


def serve(
    catalogs: Sequence[str],
    host: str = "127.0.0.1",
    port: int = 7860,
    token: str | None = None,
    names: Sequence[str] = (),
    models: Sequence[str] = (),
    upload_megabytes: float = 20.0,
    megapixels: float = 50.0,
) -> None:
    """Serve catalogs over HTTP, with a search page, until Ctrl-C."""
    check_token(host, token)
    for name, value in (("upload_megabytes", upload_megabytes), ("megapixels", megapixels)):
        if not 1e-6 <= value < math.inf:
            raise InputError(f"{value:g}", field=name, expected="a number above zero")
    limits = Limits(upload_bytes=int(upload_megabytes * 1e6), pixels=int(megapixels * 1e6))
    logging.basicConfig(format="%(message)s")
    with ExitStack() as stack:
        listening = stack.enter_context(_listen(host, port))  # before anything slow
        loaded = [load_model(path) for path in models]
        opened = {name: stack.enter_context(Catalog.open(address)) for name, address in name_catalogs(catalogs).items()}
        service = Service(opened, loaded, limits)
        stack.callback(service.close)
        config = uvicorn.Config(
            make_app(service, host, token, names),
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=bool(names),
            limit_concurrency=service.limits.connections,
            timeout_graceful_shutdown=3,
        )
        shown = host.strip("[]") if is_loopback(host) else socket.gethostname()
        port = listening.getsockname()[1]
        print(f"http://{f'[{shown}]' if ':' in shown else shown}:{port}/  (Ctrl-C to stop)", flush=True)
        with suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[listening])


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def check_token(host: str, token: str | None) -> None:
    """Raise `InputError` for a missing token where others can reach the address, and for a weak one."""
    if token is None and not is_loopback(host):
        hint = f"set ORTHOPROXY_TOKEN, for example to {secrets.token_urlsafe(24)}"
        raise InputError(f"missing, and others can reach {host}", field="token", hint=hint)
    if token is not None and (len(token) < MIN_TOKEN_LENGTH or not token.isascii() or not token.isprintable()):
        expected = f"at least {MIN_TOKEN_LENGTH} printable ASCII characters"
        raise InputError(f"{len(token)} characters", field="token", expected=expected)


def _listen(host: str, port: int) -> socket.socket:
    if not 0 <= port <= 65535:
        raise InputError(f"{port}", field="port", expected="0 to 65535")
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listening = socket.create_server((host.strip("[]"), port), family=family, backlog=2048)
    except OSError as error:
        reason = os.strerror(error.errno).lower() if error.errno and error.errno > 0 else error.strerror
        raise InputError(f"{host}:{port}: {reason}", field="port", hint="choose another address or port") from error
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # connections inherit it; asyncio does not set it
    return listening


def name_catalogs(addresses: Sequence[str]) -> dict[str, str]:
    """Name each catalog by the last part of its address, with a number where two would have the same name."""
    named: dict[str, str] = {}
    for address in addresses:
        parts = urlsplit(address)
        path = parts.path if parts.scheme in ("http", "https") else os.path.abspath(address)  # noqa: PTH100
        base = PurePosixPath(path).name or parts.hostname or "catalog"
        names = (base if number == 1 else f"{base}-{number}" for number in count(1))
        named[next(name for name in names if name not in named)] = address
    return named
