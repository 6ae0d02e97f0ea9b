"""`orthoproxy serve`."""

from __future__ import annotations

import os
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
    from orthoproxy.server.serve import serve

    arguments = vars(options) | {"token": options.token or os.environ.get("ORTHOPROXY_TOKEN") or None}
    serve(**arguments)
