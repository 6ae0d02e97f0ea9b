"""A small catalog of colored squares, indexed with a model of random weights, and clients of a server for it."""

import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import uvicorn
from fastapi import FastAPI
from PIL import Image
from small_runs import write_shades
from starlette.testclient import TestClient
from starlette.types import ASGIApp, Receive, Scope, Send

from orthoproxy.catalog.catalog import Catalog
from orthoproxy.catalog.index import index_images
from orthoproxy.data.sources.collection import Collection
from orthoproxy.embedding.embedder import Embedder
from orthoproxy.models import Encoder
from orthoproxy.server.app import make_app
from orthoproxy.server.limits import Limits
from orthoproxy.server.service import Service

COLORS = {"blue": (20, 20, 230), "green": (20, 230, 20), "red": (230, 20, 20), "grey": (120, 120, 120)}
TOKEN = "a-token-for-the-tests"
HERE = "http://127.0.0.1:7860"
QUICK = Limits(decode_workers=1)


def make_images(root: Path, each: int = 5) -> list[str]:
    """Some squares of each color, in folders of their names."""
    generator = np.random.default_rng(0)
    for name, color in COLORS.items():
        write_shades(root / name, color, each, generator)
    return [f"{name}/{number}.png" for name in COLORS for number in range(each)]


def make_model(seed: int = 0) -> Embedder:
    """A DeiT-Ti for 32 pixels, random weights."""
    torch.manual_seed(seed)
    return Embedder(Encoder("deit_tiny_patch16_224", embedding_dim=8, image_size=32))


def make_catalog(folder: Path, model: Embedder, root: Path, paths: Sequence[str], place: str = "nowhere") -> Catalog:
    """Index images; the label is the folder, the group a number that every fifth image shares."""
    images = pd.DataFrame({"path": list(paths)})
    images["label"] = images["path"].str.split("/").str[0]
    images["group"] = images["path"].str.extract(r"(\d+)", expand=False).fillna("")
    catalog = Catalog.create(str(folder), model.embedding_dim, model.identity, place, root)
    index_images(catalog, Collection(root, images), model)
    return catalog


def make_halves(root: Path, folder: Path, model: Embedder) -> Catalog:
    """Index the left half of a picture, which is red; the right half is green. And an image of each color."""
    halves = Image.new("RGB", (80, 40), COLORS["red"])
    halves.paste(COLORS["green"], (40, 0, 80, 40))
    (root / "left").mkdir()
    halves.save(root / "left" / "halves.png")
    return make_catalog(folder, model, root, ["left/halves.png#xywh=0,0,40,40", "red/0.png", "green/0.png"])


@contextmanager
def client_of(app: FastAPI, **options: object) -> Iterator[TestClient]:
    """A client that names the server as a browser on this machine does."""
    with TestClient(app, base_url=HERE, raise_server_exceptions=False, **options) as client:  # type: ignore[arg-type]
        yield client


def _behind(prefix: str, app: ASGIApp) -> ASGIApp:
    """What an application sees behind a proxy: paths without the prefix, and a Host header without the port."""

    async def proxied(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = [(name, value) for name, value in scope["headers"] if name != b"host"]
            headers += [(b"host", b"127.0.0.1"), (b"x-forwarded-prefix", prefix.encode())]
            path = scope["path"]
            inside = path.removeprefix(prefix) if path.startswith(f"{prefix}/") else "/of-another-application"
            scope = {**scope, "headers": headers, "path": inside, "raw_path": inside.encode()}
        await app(scope, receive, send)

    return proxied


@contextmanager
def running(service: Service, token: str | None = None, prefix: str = "") -> Iterator[str]:
    """A server that listens, for browsers; its address. With a prefix, it is as behind a proxy that removes it."""
    listening = socket.create_server(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    app = make_app(service, token=token)
    served = _behind(prefix, app) if prefix else app
    server = uvicorn.Server(uvicorn.Config(served, log_level="warning", access_log=False, timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server ended"
        thread.join(0.02)
    yield f"http://127.0.0.1:{port}{prefix}"
    server.should_exit = True
    thread.join(20)
    listening.close()
