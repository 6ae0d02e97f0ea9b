"""Catalogs on a Milvus server, for clusters."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from itertools import pairwise
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pandas as pd
from jaxtyping import Float

from orthoproxy.catalog.columns import HIT_FIELDS, TEXT_FIELDS
from orthoproxy.catalog.filters import And, Condition, In, Like, Not, Or
from orthoproxy.core.errors import InputError

# Data loading forks while Milvus's threads run; the children use no gRPC.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")
os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # errors are raised, so do not log them too

try:
    from pymilvus import DataType, MilvusClient
    from pymilvus.exceptions import MilvusException
except ImportError as error:
    raise InputError("pymilvus is not installed", hint="pip install 'orthoproxy[milvus]'") from error

for _name in ("pymilvus", "pymilvus.milvus_client"):  # which print errors that they also raise
    logging.getLogger(_name).setLevel(logging.CRITICAL)

COLLECTION = "orthoproxy"
HNSW = {"M": 32, "efConstruction": 200}
EF_SEARCH, EF_FILTERED = 128, 512  # HNSW's candidates per search; with a filter, only some of them count
PAGE_SIZE = 8000  # rows; a query returns at most 16,384
MAX_ROWS = 16_384


class MilvusStore:
    """A collection on a Milvus server: a `LanceStore` without `history`, `undo`, `set_meta`, migration and versions."""

    exact_below = 200_000

    def __init__(self, client: Any, collection: str, address: str, dim: int, meta: str) -> None:
        self._client, self._collection = client, collection
        self.address, self.dim, self.meta = address, dim, meta
        self._has_written = False

    @classmethod
    def create(cls, address: str, dim: int, meta: str) -> MilvusStore:
        """Create an empty collection; raises InputError if there is one, or the server does not answer."""
        with _milvus_errors(address), ExitStack() as stack:
            client, name = _connect(address)
            stack.callback(client.close)
            if client.has_collection(name):
                raise InputError(f"collection {name} exists already", path=address, hint="choose another name")
            schema = client.create_schema(auto_id=False, enable_dynamic_field=False, description=meta)
            for field, max_bytes in TEXT_FIELDS.items():
                schema.add_field(field, DataType.VARCHAR, is_primary=field == "id", max_length=max_bytes)
            schema.add_field("embedding", DataType.FLOAT_VECTOR, dim=dim)
            client.create_collection(name, schema=schema, consistency_level="Bounded")
            store = cls(client, name, address, dim, meta)
            store._create_index("FLAT")
            stack.pop_all()
        return store

    @classmethod
    def open(cls, address: str) -> MilvusStore | None:
        """Open a collection; None if there is none."""
        with _milvus_errors(address), ExitStack() as stack:
            client, name = _connect(address)
            stack.callback(client.close)
            if not client.has_collection(name):
                return None
            about = client.describe_collection(name)
            fields = {field["name"]: field.get("params", {}) for field in about["fields"]}
            if not {*TEXT_FIELDS, "embedding"} <= {*fields} or "dim" not in fields["embedding"]:
                raise InputError(f"collection {name} is not a catalog", path=address, hint="choose another name")
            store = cls(client, name, address, int(fields["embedding"]["dim"]), about.get("description", ""))
            if client.list_indexes(name):
                client.load_collection(name)
            else:  # of a process that was killed while it replaced the index
                store._create_index("FLAT")
            stack.pop_all()
        return store

    def upsert(self, rows: pd.DataFrame, embeddings: Float[np.ndarray, "N D"]) -> None:
        records = rows[list(TEXT_FIELDS)].assign(embedding=list(embeddings)).to_dict("records")
        step = max(1, min(2000, 4_000_000 // self.dim))
        self._has_written = True
        for first in range(0, len(records), step):
            with _milvus_errors(self.address):
                self._client.upsert(self._collection, records[first : first + step])

    def delete(self, ids: Sequence[str]) -> int:
        self._has_written, deleted = True, 0
        for first in range(0, len(ids), 1000):
            existing = self.get(ids[first : first + 1000], ["id"])["id"].tolist()
            if existing:
                with _milvus_errors(self.address):
                    self._client.delete(self._collection, ids=existing)
            deleted += len(existing)
        return deleted

    def get(self, ids: Sequence[str], columns: Sequence[str]) -> pd.DataFrame:
        parts = [ids[first : first + 1000] for first in range(0, len(ids), 1000)]
        rows = [row for part in parts for row in self._query(to_expression(In("id", tuple(part))), list(columns))]
        return self._to_pandas(rows, columns)

    def pages(self, columns: Sequence[str]) -> Iterator[pd.DataFrame]:
        """Yield all rows by ranges of ids, which are hashes and so spread evenly."""
        size = min(PAGE_SIZE, max(1, 8_000_000 // self.dim)) if "embedding" in columns else PAGE_SIZE
        count = max(1, -(-self.count() // size))
        for first, last in pairwise([*(f"{number * 16**8 // count:08x}" for number in range(count)), "g"]):
            yield self._to_pandas(self._query(f'id >= "{first}" and id < "{last}"', list(columns)), columns)

    def count(self) -> int:
        return int(self._query("", ["count(*)"])[0]["count(*)"])

    def search(self, queries: Float[np.ndarray, "Q D"], k: int, where: Condition | None) -> list[list[dict]]:
        with _milvus_errors(self.address):
            results = self._client.search(
                self._collection,
                data=list(queries),
                filter=to_expression(where) if where else "",
                limit=k,
                output_fields=HIT_FIELDS,
                search_params={"metric_type": "IP", "params": {"ef": max(EF_FILTERED if where else EF_SEARCH, k)}},
                consistency_level="Strong" if self._has_written else "Bounded",
            )
        return [[{**hit["entity"], "similarity": hit["distance"]} for hit in hits] for hits in results]

    @property
    def index_type(self) -> str:
        with _milvus_errors(self.address):
            return str(self._client.describe_index(self._collection, "embedding")["index_type"])

    def build_index(self, measure_recall: Callable[[], float]) -> None:
        with _milvus_errors(self.address):
            self._client.release_collection(self._collection)
            self._client.drop_index(self._collection, "embedding")
            self._create_index("HNSW")

    def _create_index(self, kind: str) -> None:
        index = self._client.prepare_index_params()
        index.add_index("embedding", index_type=kind, metric_type="IP", params=HNSW if kind == "HNSW" else {})
        self._client.create_index(self._collection, index)
        self._client.load_collection(self._collection)

    def optimize(self) -> None:
        with _milvus_errors(self.address):
            self._client.flush(self._collection)

    def close(self) -> None:
        self._client.close()

    def undoable(self, allow_migration: bool = False) -> AbstractContextManager[None]:
        """Do nothing, as a server keeps no earlier versions."""
        return nullcontext()

    def _query(self, expression: str, columns: list[str]) -> list[dict[str, Any]]:
        limit = {} if columns == ["count(*)"] else {"limit": MAX_ROWS}
        with _milvus_errors(self.address):
            return self._client.query(
                self._collection, filter=expression, output_fields=columns, consistency_level="Strong", **limit
            )

    def _to_pandas(self, rows: list[dict[str, Any]], columns: Sequence[str]) -> pd.DataFrame:
        for row in rows if "embedding" in columns else []:
            row["embedding"] = np.float32(row["embedding"])
        return pd.DataFrame(rows, columns=list(columns))


def to_expression(condition: Condition) -> str:
    """Render a condition for Milvus, texts as escaped literals; templates need Milvus 2.5."""
    match condition:
        case In(field, values):
            return f"{field} in [{', '.join(map(_quote, values))}]"
        case Like(field):
            return f"{field} like {_quote(condition.pattern)}"
        case Not(inner):
            return f"not ({to_expression(inner)})"
        case And(conditions):
            return _join([to_expression(part) for part in conditions], "and")
        case Or(conditions):
            return _join([to_expression(part) for part in conditions], "or")


def _join(parts: list[str], word: str) -> str:
    """Join expressions as a balanced tree, as Milvus does not parse a deep one."""
    half = len(parts) // 2
    return f"({_join(parts[:half], word)}) {word} ({_join(parts[half:], word)})" if half else parts[0]


def _quote(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + escaped.replace("\n", "\\n").replace("\r", "\\r").replace("\t", "\\t") + '"'


def _connect(address: str) -> tuple[Any, str]:
    """Connect to a server; returns the client and the collection's name, which follows the slash."""
    parts = urlsplit(address)
    name = parts.path.strip("/") or COLLECTION
    if not re.fullmatch(r"[A-Za-z_]\w{0,254}", name, re.ASCII):
        raise InputError(f"collection name {name!r}", path=address, expected="letters, digits and underscores")
    token = os.environ.get("MILVUS_TOKEN", "")
    try:
        return MilvusClient(f"{parts.scheme}://{parts.netloc}", token=token, timeout=10, dedicated=True), name
    except MilvusException as error:
        raise InputError(f"no Milvus server answers: {_first_line(error)}", path=address) from error


@contextmanager
def _milvus_errors(address: str) -> Iterator[None]:
    try:
        yield
    except MilvusException as error:
        raise InputError(f"Milvus: {_first_line(error)}", path=address) from error


def _first_line(error: MilvusException) -> str:
    return (error.message or str(error)).strip().split("\n")[0][:300]
