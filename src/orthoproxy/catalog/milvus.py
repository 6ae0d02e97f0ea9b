"""Milvus Lite folders and Milvus servers: connections, and the collection of a catalog."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from orthoproxy.core.errors import InputError

# Data loading forks while Milvus's threads run; the children use no gRPC.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")
os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # failures are raised as well

try:
    from pymilvus import DataType, MilvusClient
    from pymilvus.exceptions import MilvusException
except ImportError as error:
    raise InputError("pymilvus is not installed", hint="pip install 'orthoproxy[search]'") from error

for _name in ("pymilvus", "milvus_lite", "grpc._server"):  # failures are raised as well
    logging.getLogger(_name).addHandler(logging.NullHandler())
    logging.getLogger(_name).propagate = False

COLLECTION = "orthoproxy"
TEXT_FIELDS = {"id": 32, "path": 4096, "label": 1024, "group": 1024, "content": 64}  # maximum bytes
HNSW = {"M": 32, "efConstruction": 200}
Client = Any  # MilvusClient; its decorators hide the return types
# The server of a folder is in this process: no proxy, and no keepalive pings, which end calls that take minutes
LOCAL = {"grpc.enable_http_proxy": 0, "grpc.keepalive_time_ms": 2**31 - 1}


def is_server(address: str) -> bool:
    """Whether an address is a server's, not a folder."""
    return re.match(r"https?://", address) is not None


def connect(address: str) -> tuple[Client, str]:
    """Connect to a server; returns the client and the collection's name, which follows the slash."""
    parts = urlsplit(address)
    name = parts.path.strip("/") or COLLECTION
    if not re.fullmatch(r"[A-Za-z_]\w{0,254}", name, re.ASCII):
        raise InputError(f"collection name {name!r}", path=address, expected="letters, digits and underscores")
    token = os.environ.get("MILVUS_TOKEN", "")
    try:
        return MilvusClient(f"{parts.scheme}://{parts.netloc}", token=token, timeout=10, dedicated=True), name
    except MilvusException as error:
        raise InputError(f"no Milvus server answers: {first_line(error)}", path=address) from error


@contextmanager
def open_lite(folder: Path) -> Iterator[Client]:
    """Open or create the database in a locked folder; its server is a thread of this process."""
    from milvus_lite.server_manager import server_manager_instance

    path = str(folder.absolute() / "milvus.db")
    try:
        try:
            client = MilvusClient(path, dedicated=True, grpc_options=LOCAL)
        except MilvusException as error:
            hint = "close other programs that use it"
            raise InputError(f"Milvus cannot open it: {first_line(error)}", path=folder, hint=hint) from error
        yield client
        with suppress(MilvusException):
            client.close()
    finally:
        server_manager_instance.release_server(path)


def create_collection(client: Client, name: str, dim: int, description: str) -> None:
    """Create and load an empty collection with exact search."""
    schema = client.create_schema(auto_id=False, enable_dynamic_field=False, description=description)
    for field, max_bytes in TEXT_FIELDS.items():
        schema.add_field(field, DataType.VARCHAR, is_primary=field == "id", max_length=max_bytes)
    schema.add_field("embedding", DataType.FLOAT_VECTOR, dim=dim)
    client.create_collection(name, schema=schema, consistency_level="Bounded")
    create_index(client, name, "FLAT")
    client.load_collection(name)


def create_index(client: Client, name: str, kind: str) -> None:
    """Build an index, ``FLAT`` or ``HNSW``."""
    index = client.prepare_index_params()
    index.add_index("embedding", index_type=kind, metric_type="IP", params=HNSW if kind == "HNSW" else {})
    client.create_index(name, index)


def first_line(error: MilvusException) -> str:
    """Return the first line of Milvus's error message."""
    return (error.message or str(error)).strip().split("\n")[0][:300]
