"""From catalogs' addresses to a server that runs."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import PurePosixPath
from urllib.parse import urlsplit

from orthoproxy.catalog.catalog import Catalog
from orthoproxy.core.errors import InputError
from orthoproxy.embedding.onnx_embedder import load_model
from orthoproxy.server.app import make_app
from orthoproxy.server.limits import Limits
from orthoproxy.server.security import check_token, is_loopback
from orthoproxy.server.service import Service

try:
    import uvicorn
except ImportError as error:
    raise InputError("uvicorn is not installed; run: pip install 'orthoproxy[search]'") from error


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
    """Serve catalogs until Ctrl-C.

    Parameters
    ----------
    catalogs
        Their addresses; see `Catalog.open`.
    host, port
        Where to listen.
    token
        That a client must know; needed where `host` is not this machine alone.
    names
        Under which the server is known besides, behind a proxy.
    models
        Paths of models, for catalogs whose model has moved.
    upload_megabytes, megapixels
        The most that a picture may have.

    Raises
    ------
    InputError
        If a catalog or the port cannot be had, or the token is missing or too short.

    Examples
    --------
    >>> serve(["shoes"], host="0.0.0.0")
    Traceback (most recent call last):
    ...
    orthoproxy.core.errors.InputError: --host 0.0.0.0 can be reached by others and needs a token; set ORTHOPROXY_TOKEN or --token, at least 16 characters
    """  # noqa: E501
    check_token(host, token)
    limits = replace(Limits(), upload_bytes=int(upload_megabytes * 1e6), pixels=int(megapixels * 1e6))
    if min(limits.upload_bytes, limits.pixels) < 1:
        raise InputError("--upload-megabytes, --megapixels: give numbers above zero")
    logging.basicConfig(format="%(message)s")
    with ExitStack() as stack:
        listening = stack.enter_context(_listen(host, port))
        port = listening.getsockname()[1]
        known = [load_model(path) for path in models]
        opened = {name: stack.enter_context(Catalog.open(address)) for name, address in _named(catalogs).items()}
        service = Service(opened, known, limits)
        stack.callback(service.close)
        app = make_app(service, host, port, token, tuple(names))
        config = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=bool(names),
            timeout_graceful_shutdown=3,
        )
        listening.listen(2048)  # whoever reads the address may ask at once
        shown = host.strip("[]") if is_loopback(host) else socket.gethostname()
        print(f"http://{f'[{shown}]' if ':' in shown else shown}:{port}/  (Ctrl-C to stop)", flush=True)
        with suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[listening])


def _listen(host: str, port: int) -> socket.socket:
    """Take the port before anything slow is done."""
    if not 0 <= port <= 65535:
        raise InputError(f"--port: {port}; from 1 to 65535")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio sends small answers at once only where the protocol is named; else a client waits 40 ms for each
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host.strip("[]"), port))
    except OSError as error:
        listening.close()
        reason = os.strerror(error.errno).lower() if error.errno and error.errno > 0 else str(error)
        raise InputError(f"--host {host} --port {port}: {reason}; give another one") from error
    return listening


def _named(addresses: Sequence[str]) -> dict[str, str]:
    """Name each catalog by the end of its address, with a number where two would have the same name."""
    named: dict[str, str] = {}
    for address in addresses:
        parts = urlsplit(address)
        path = parts.path if parts.scheme in ("http", "https") else os.path.abspath(address)  # noqa: PTH100
        base = PurePosixPath(path).name or parts.hostname or "catalog"
        name, number = base, 1
        while name in named:
            number += 1
            name = f"{base}-{number}"
        named[name] = address
    return named
