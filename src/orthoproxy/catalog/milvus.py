"""Milvus in a folder or on a server: connecting, one process a folder, and the collection that holds a catalog."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from filelock import FileLock, Timeout

from orthoproxy.core.errors import InputError

# embedding images forks workers while Milvus's threads run; they use no gRPC, so its handlers would only be in the way
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")
# it tells of pings and of connections opened anew on standard error; what fails comes as an exception
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

try:
    from pymilvus import DataType, MilvusClient
    from pymilvus.exceptions import MilvusException
except ImportError as error:
    raise InputError("pymilvus is not installed; run: pip install 'orthoproxy[search]'") from error

for _name in ("pymilvus", "milvus_lite", "grpc._server"):  # what they log of a failure, we tell in a line
    logging.getLogger(_name).addHandler(logging.NullHandler())
    logging.getLogger(_name).propagate = False

COLLECTION = "orthoproxy"
TOKEN = "MILVUS_TOKEN"
TEXTS = {"id": 32, "path": 4096, "label": 1024, "group": 1024, "content": 64}  # fields and their most bytes
NEIGHBOURS = {"M": 32, "efConstruction": 200}  # of HNSW
Client = Any  # a MilvusClient; its decorators hide from a type checker what its methods return
# A folder's server is in this process: no proxy, and no pings, for which it would hang up on a call that takes minutes,
# and pymilvus send it again
LOCAL = {"grpc.enable_http_proxy": 0, "grpc.keepalive_time_ms": 2**31 - 1}


def is_server(address: str) -> bool:
    """Tell a server's address from a folder."""
    return re.match(r"https?://", address) is not None


def connect(address: str) -> tuple[Client, str]:
    """Connect to a server, with ``MILVUS_TOKEN`` if that is set; the collection's name is what follows the slash."""
    parts = urlsplit(address)
    name = parts.path.strip("/") or COLLECTION
    if not re.fullmatch(r"[A-Za-z_]\w{0,254}", name, re.ASCII):
        raise InputError(f"{address}: {name!r} is no name of a collection; use letters, digits and underscores")
    uri = f"{parts.scheme}://{parts.netloc}"
    try:
        return MilvusClient(uri, token=os.environ.get(TOKEN, ""), timeout=10, dedicated=True), name
    except MilvusException as error:
        raise InputError(f"{address}: no Milvus server answers there: {first_line(error)}") from error


def open_lite(folder: Path) -> Client:
    """Open or make the database in a folder that is `held`."""
    try:
        return MilvusClient(str(folder.absolute() / "milvus.db"), dedicated=True, grpc_options=LOCAL)
    except MilvusException as error:  # without our lock: opened by another program
        raise InputError(
            f"{folder}: Milvus cannot open it, perhaps since another program has: {first_line(error)}"
        ) from error


def close_lite(client: Client, folder: Path) -> None:
    """Close the database, and end the thread that served it."""
    from milvus_lite.server_manager import server_manager_instance

    with suppress(MilvusException):
        client.close()
    server_manager_instance.release_server(str(folder.absolute() / "milvus.db"))


@contextmanager
def held(folder: Path) -> Iterator[FileLock]:
    """Take a folder for this process; let it go again only on an error."""
    lock, holder = FileLock(folder / "lock"), folder / "lock.pid"
    try:
        lock.acquire(timeout=0)
    except Timeout:
        pid = holder.read_text(encoding="utf-8").strip() if holder.is_file() else "unknown"
        who = "this process" if pid == str(os.getpid()) else f"another process (pid {pid})"
        raise InputError(f"{folder} is open in {who}; stop it, or give the address of its server") from None
    except OSError as error:
        raise InputError(f"{folder}: {os.strerror(error.errno or 0).lower()}; a catalog must be writable") from error
    try:
        holder.write_text(f"{os.getpid()}\n", encoding="utf-8")
        yield lock
    except BaseException:
        from milvus_lite.server_manager import server_manager_instance

        server_manager_instance.release_server(str(folder.absolute() / "milvus.db"))
        lock.release()
        raise


@contextmanager
def closed_on_error(client: Client) -> Iterator[None]:
    """Close a connection again if what follows fails."""
    try:
        yield
    except BaseException:
        client.close()
        raise


def create_collection(client: Client, name: str, dim: int, description: str) -> None:
    """Make an empty collection with a catalog's fields, its search exact, and load it."""
    schema = client.create_schema(auto_id=False, enable_dynamic_field=False, description=description)
    for field, most in TEXTS.items():
        schema.add_field(field, DataType.VARCHAR, is_primary=field == "id", max_length=most)
    schema.add_field("embedding", DataType.FLOAT_VECTOR, dim=dim)
    client.create_collection(name, schema=schema, consistency_level="Bounded")
    create_index(client, name, "FLAT")
    client.load_collection(name)


def create_index(client: Client, name: str, kind: str) -> None:
    """Build an index, ``FLAT`` or ``HNSW``."""
    index = client.prepare_index_params()
    index.add_index("embedding", index_type=kind, metric_type="IP", params=NEIGHBOURS if kind == "HNSW" else {})
    client.create_index(name, index)


def first_line(error: MilvusException) -> str:
    """What Milvus says of a failure, in a line."""
    return (error.message or str(error)).strip().split("\n")[0][:300]
