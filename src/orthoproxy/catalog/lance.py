"""Catalogs in a folder or an object store, by LanceDB. Any number of processes may read and write one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import reduce
from itertools import takewhile
from pathlib import Path
from threading import Lock
from typing import Any as Anything

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float

from orthoproxy.catalog.filters import All, Any, Condition, In, Like, Not
from orthoproxy.catalog.store import HIT_FIELDS, TEXT_FIELDS, Store
from orthoproxy.core.errors import InputError

os.environ.setdefault("LANCEDB_LOG", "error")  # failures are raised as well

try:
    import lancedb
    from lancedb.expr import col, lit
    from lancedb.index import IvfSq
except ImportError as error:
    raise InputError("lancedb is not installed", hint="pip install 'orthoproxy[search]'") from error

TABLE = "images"
META = b"orthoproxy"  # key in the metadata of the table's schema
# without it, processes that insert the same id at the same time would both succeed
PRIMARY_KEY = {"lance-schema:unenforced-primary-key:position": "1"}
IN_MEMORY = 512 * 2**20  # bytes of embeddings; fewer are searched exactly, in memory
PAGE_SIZE = 8192
CANDIDATES = 10  # per result, whose exact similarity is computed
ENOUGH_RECALL = 0.99
SMALL_FRAGMENT = 4096  # rows; if the average file has fewer, files are merged
ALWAYS_LATEST = timedelta(0)


class LanceStore(Store):
    """A table of LanceDB. Embeddings below `IN_MEMORY` are searched by one matrix product, kept until they change."""

    def __init__(self, table: Anything, address: str) -> None:
        self._table, self.address = table, address
        self.dim = table.schema.field("embedding").type.list_size
        self.exact_below = IN_MEMORY // (4 * self.dim)
        self._version, self._in_memory = -1, None  # of the table, and the texts and embeddings of that version
        self._lock = Lock()  # of these

    @classmethod
    def create(cls, address: str, dim: int, meta: str) -> LanceStore:
        """Create an empty table; raises InputError if there is one, or the folder holds other files."""
        folder = _local_folder(address)
        if folder is not None and folder.is_dir():
            others = {path.name for path in folder.iterdir()} - {f"{TABLE}.lance"}
            if others:
                raise InputError(f"holds {min(others)}, but no catalog", path=address, hint="choose another folder")
        keys = {"id": PRIMARY_KEY}
        fields = [pa.field(name, pa.string(), nullable=False, metadata=keys.get(name)) for name in TEXT_FIELDS]
        fields.append(pa.field("embedding", pa.list_(pa.float32(), dim), nullable=False))
        with _lance_errors(address):
            table = _connect(address).create_table(TABLE, schema=pa.schema(fields, metadata={META: meta}))
        return cls(table, address)

    @classmethod
    def open(cls, address: str) -> tuple[LanceStore, str] | None:
        """Open a table; returns it with its metadata, or None if there is none."""
        folder = _local_folder(address)
        if folder is not None and not (folder / f"{TABLE}.lance").is_dir():
            return None
        with _lance_errors(address):
            try:
                table = _connect(address).open_table(TABLE)
            except ValueError as error:
                if "not found" in str(error):  # LanceDB has no error of its own for this
                    return None
                raise
            return cls(table, address), (table.schema.metadata or {}).get(META, b"").decode()

    def upsert(self, rows: pd.DataFrame, embeddings: Float[np.ndarray, "N D"]) -> None:
        schema = self._table.schema.remove_metadata()
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(embeddings.reshape(-1)), self.dim)
        data = pa.table([*(pa.array(rows[name], pa.string()) for name in TEXT_FIELDS), vectors], schema=schema)
        with _lance_errors(self.address):
            self._table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all().execute(data)

    def delete(self, ids: Sequence[str]) -> int:
        with _lance_errors(self.address):
            return self._table.delete(to_sql(In("id", tuple(ids)))).num_deleted_rows if ids else 0

    def get(self, ids: Sequence[str], columns: Sequence[str]) -> pd.DataFrame:
        with _lance_errors(self.address):
            query = self._table.search().where(to_sql(In("id", tuple(ids)))).select(list(columns))
            return _to_pandas(query.to_arrow()) if ids else pd.DataFrame(columns=list(columns))

    def pages(self, columns: Sequence[str]) -> Iterator[pd.DataFrame]:
        with _lance_errors(self.address):
            for batch in self._table.search().select(list(columns)).to_batches(PAGE_SIZE):
                yield _to_pandas(pa.table(batch))

    def count(self) -> int:
        with _lance_errors(self.address):
            return self._table.count_rows()

    def search(self, queries: Float[np.ndarray, "Q D"], k: int, where: Condition | None) -> list[pd.DataFrame]:
        with self._lock, _lance_errors(self.address):  # the threads of several products would slow down each other
            in_memory = self._load()
            if in_memory is not None:
                return self._search_in_memory(*in_memory, queries, k, where)
        with _lance_errors(self.address):
            return [self._search_on_disk(query, k, where) for query in queries]

    def _search_in_memory(
        self, texts: pa.Table, embeddings: np.ndarray, queries: np.ndarray, k: int, where: Condition | None
    ) -> list[pd.DataFrame]:
        if where is not None:
            chosen = np.flatnonzero(matches(where, texts))
            texts, embeddings = texts.take(chosen), embeddings[chosen]
        found = []
        for query in queries:
            similarity = embeddings @ query
            nearest = np.argpartition(-similarity, k)[:k] if k < len(similarity) else np.arange(len(similarity))
            nearest = nearest[np.argsort(-similarity[nearest], kind="stable")]
            rows = texts.take(nearest).to_pandas()
            found.append(rows.assign(similarity=similarity[nearest]))
        return found

    def _load(self) -> tuple[pa.Table, np.ndarray] | None:
        """Return the texts and embeddings of all rows, read again only if the table has changed; None if too large."""
        version = self._table.version
        if self._version != version:
            self._in_memory = None
            if self.count() < self.exact_below:
                data = self._table.search().select([*HIT_FIELDS, "embedding"]).to_arrow()
                self._in_memory = data.select(HIT_FIELDS).combine_chunks(), _to_numpy(data["embedding"], self.dim)
            self._version = version
        return self._in_memory

    def _search_on_disk(self, query: np.ndarray, k: int, where: Condition | None) -> pd.DataFrame:
        """Search by the index; exactly if there is a condition, as what meets it may be in other partitions."""
        probes = (self._table.schema.field("embedding").metadata or {}).get(b"probes")
        search = self._table.search(query, vector_column_name="embedding").distance_type("dot")
        search = search.select([*HIT_FIELDS, "_distance"]).limit(k)
        if where is not None:
            search = search.where(to_sql(where)).bypass_vector_index()
        elif probes is not None:
            search = search.nprobes(int(probes)).refine_factor(CANDIDATES)
        found = search.to_arrow().to_pandas()
        return found.assign(similarity=1 - found["_distance"])[[*HIT_FIELDS, "similarity"]]

    @property
    def index(self) -> str:
        return "IVF" if self._vector_index() else "FLAT"

    def _vector_index(self) -> Anything:
        with _lance_errors(self.address):
            return next((index for index in self._table.list_indices() if index.columns == ["embedding"]), None)

    def build_index(self, measure_recall: Callable[[], float]) -> None:
        partitions = max(1, round(self.count() ** 0.5))
        with _lance_errors(self.address):
            config = IvfSq(distance_type="dot", num_partitions=partitions)
            self._table.create_index("embedding", config=config, replace=True)
            for probes in takewhile(lambda number: number < partitions, (8 * 2**step for step in range(32))):
                self._table.update_field_metadata({"path": "embedding", "metadata": {"probes": str(probes)}})
                if measure_recall() >= ENOUGH_RECALL:
                    break

    def optimize(self) -> None:
        with _lance_errors(self.address):
            fragments = self._table.stats()["fragment_stats"]["num_fragments"]
            if fragments > max(100, self.count() / SMALL_FRAGMENT) or self._vector_index():
                self._table.optimize(cleanup_older_than=timedelta(hours=1))

    def close(self) -> None:
        self._version, self._in_memory = -1, None


def to_sql(condition: Condition) -> str:
    """Render a condition for LanceDB, which writes the literals."""
    match condition:
        case In(field, values):
            return col(field).isin(list(values)).to_sql()
        case Like(field):
            return f"{col(field).to_sql()} LIKE {lit(condition.pattern).to_sql()}"
        case Not(inner):
            return f"NOT ({to_sql(inner)})"
        case All(conditions):
            return " AND ".join(f"({to_sql(part)})" for part in conditions)
        case Any(conditions):
            return " OR ".join(f"({to_sql(part)})" for part in conditions)


def matches(condition: Condition, texts: pa.Table) -> np.ndarray:
    """Evaluate a condition on rows in memory."""
    match condition:
        case In(field, values):
            return pc.is_in(texts[field], pa.array(values, pa.string())).to_numpy()  # pyright: ignore[reportAttributeAccessIssue]
        case Like(field):
            return pc.match_like(texts[field], condition.pattern).to_numpy()  # pyright: ignore[reportAttributeAccessIssue]
        case Not(inner):
            return ~matches(inner, texts)
        case All(conditions):
            return reduce(np.logical_and, (matches(part, texts) for part in conditions))
        case Any(conditions):
            return reduce(np.logical_or, (matches(part, texts) for part in conditions))


def _to_pandas(table: pa.Table) -> pd.DataFrame:
    """Convert a table; an embedding becomes an array of its own."""
    texts = table.select([name for name in table.column_names if name != "embedding"]).to_pandas()
    if "embedding" in table.column_names:
        column = table["embedding"]
        texts["embedding"] = list(_to_numpy(column, column.type.list_size))
    return texts


def _to_numpy(column: pa.ChunkedArray, dim: int) -> np.ndarray:
    return np.concatenate([chunk.flatten().to_numpy() for chunk in column.chunks] or [np.empty(0, "f4")]).reshape(
        -1, dim
    )


def _local_folder(address: str) -> Path | None:
    return None if "://" in address else Path(address)


def _connect(address: str) -> Anything:
    return lancedb.connect(address, read_consistency_interval=ALWAYS_LATEST)


@contextmanager
def _lance_errors(address: str) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except (RuntimeError, ValueError, OSError) as error:  # LanceDB has no base class of its own
        problem = str(error).partition(", /")[0].partition("\n")[0][:300]
        raise InputError(f"LanceDB: {problem}", path=address) from error
