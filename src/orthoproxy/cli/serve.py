"""`orthoproxy serve`."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from orthoproxy.cli.index import CATALOG
from orthoproxy.cli.options import Parser


def add_options(parser: Parser) -> None:
    add = parser.add_argument
    add("catalogs", nargs="+", metavar="CATALOG", help=f"{CATALOG} The first is the default.")
    add("--host", default="127.0.0.1", help="Address to listen on; any but this machine needs a token.")
    add("--port", type=int, default=7860, help="Port; 0 for any free one (default: 7860).")
    add("--token", help="Token that clients must send; better set in ORTHOPROXY_TOKEN.")
    add("--name", action="append", default=[], dest="names", metavar="HOST", help="Host name behind a proxy.")
    add("--model", action="append", default=[], dest="models", metavar="MODEL", help="A model that was moved.")
    add("--upload-megabytes", type=float, default=20.0, metavar="MB", help="Largest uploaded file (default: 20).")
    add("--megapixels", type=float, default=50.0, metavar="MP", help="Largest uploaded image (default: 50).")


def run(options: Any) -> None:
    with _keeping_interrupts() as raise_lost:
        from orthoproxy.server.serve import serve

        arguments = vars(options) | {"token": options.token or os.environ.get("ORTHOPROXY_TOKEN") or None}
        serve(**arguments, before_start=raise_lost)


@contextmanager
def _keeping_interrupts() -> Iterator[Callable[[], None]]:
    """Yield a function that repeats a Ctrl-C or SIGTERM whose exception a library swallowed while it was imported."""
    received: list[int] = []
    found = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    handlers = {int(number): handler for number, handler in found.items() if callable(handler)}

    def handle(number: int, frame: FrameType | None) -> None:
        received.append(number)
        handlers[number](number, frame)

    def raise_lost() -> None:
        if received:
            handlers[received[0]](received[0], None)

    for number in handlers:
        signal.signal(number, handle)
    try:
        yield raise_lost
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
