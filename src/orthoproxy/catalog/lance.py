"""Catalogs in a folder or an object store, by LanceDB. Any number of processes may read and write one."""

from __future__ import annotations

import json
import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float

from orthoproxy.catalog.columns import HIT_FIELDS, TEXT_FIELDS
from orthoproxy.catalog.filters import And, Condition, In, Like, Not, Or
from orthoproxy.core.errors import InputError, os_errors_as_input_errors

os.environ.setdefault("LANCEDB_LOG", "error")  # errors are raised, so do not log them too

# data loading forks while LanceDB's threads run; the children do not use it
warnings.filterwarnings("ignore", message="lancedb fork support", category=RuntimeWarning)

try:
    import lancedb
    from lancedb.expr import col, lit
    from lancedb.index import IvfSq
except ImportError as error:
    raise InputError("lancedb is not installed", hint="pip install 'orthoproxy[search]'") from error

TABLE = "images"
META = b"orthoproxy"  # key in the metadata of the field "embedding"
# without it, processes that insert the same id at the same time would both succeed
PRIMARY_KEY = {"lance-schema:unenforced-primary-key:position": "1"}
IN_MEMORY = 512 * 2**20  # bytes of embeddings; fewer are searched exactly, in memory
PAGE_SIZE = 8192
CANDIDATES = 10  # per result, whose exact similarity is computed
ENOUGH_RECALL = 0.99
MAX_VERSIONS = 100  # each write makes one; more are merged
MAX_CHANGES = 10  # that can be undone
GROWTH = 4  # times as many rows as when the index was built: build it again


class LanceStore:
    """A table of LanceDB. Below `exact_below` rows, search is exact, on embeddings kept in memory until they change.

    Writes are durable on return; reads see the writes of all processes; errors are InputError. `undoable` gives the
    version before a change a tag, which is the time of the change.
    """

    def __init__(self, table: Any, address: str) -> None:
        self._table, self.address = table, address
        self.meta = self._metadata().get(META, b"").decode()
        self.dim = table.schema.field("embedding").type.list_size
        self.exact_below = IN_MEMORY // (4 * self.dim)  # rows; above, `build_index` makes search approximate and fast
        self._version, self._in_memory = -1, None  # of the table, and the texts and embeddings of that version
        self._lock = Lock()  # guards both
        self._trial_probes: int | None = None  # while an index is built

    @classmethod
    def create(cls, address: str, dim: int, meta: str) -> LanceStore:
        """Create an empty table; raises InputError if there is one, or the folder holds other files."""
        folder = _local_folder(address)
        if folder is not None and folder.is_dir():
            others = {path.name for path in folder.iterdir()} - {f"{TABLE}.lance"}
            if others:
                raise InputError(f"holds {min(others)}, but no catalog", path=address, hint="choose another folder")
            cls.open(address)  # raises if it is damaged
        with _lance_errors(address):
            return cls(_connect(address).create_table(TABLE, schema=_schema(dim, meta)), address)

    @classmethod
    def open(cls, address: str) -> LanceStore | None:
        """Open a table; None if there is none."""
        folder = _local_folder(address)
        files = folder and folder / f"{TABLE}.lance"
        if files and not files.is_dir():
            return None
        incomplete = InputError("files of the catalog are missing", path=address, hint="copy or restore all of them")
        newest = _newest_version(files) if files else 0
        with _lance_errors(address):
            try:
                table = _connect(address).open_table(TABLE)
            except ValueError as error:
                if f"'{TABLE}' was not found" not in str(error):  # LanceDB has no error of its own for this
                    raise
                if files and (files / "data").is_dir():
                    raise incomplete from error
                return None
            if table.version < newest:  # LanceDB opens the newest that is there
                raise incomplete
            if not {*TEXT_FIELDS, "embedding"} <= {*table.schema.names}:
                raise InputError(f"its table {TABLE} is not a catalog", path=address, hint="choose another address")
            return cls(table, address)

    def upsert(self, rows: pd.DataFrame, embeddings: Float[np.ndarray, "N D"]) -> None:
        """Insert rows with distinct ids, replacing those that exist."""
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(embeddings.reshape(-1)), self.dim)
        columns = [*(pa.array(rows[name], pa.string()) for name in TEXT_FIELDS), vectors]
        with _lance_errors(self.address):
            self._require_same_meta()
            data = pa.table(columns, schema=self._table.schema.remove_metadata())
            self._table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all().execute(data)

    def delete(self, ids: Sequence[str]) -> int:
        """Delete rows and return how many existed."""
        with _lance_errors(self.address):
            return self._table.delete(to_sql(In("id", tuple(ids)))).num_deleted_rows if ids else 0

    def get(self, ids: Sequence[str], columns: Sequence[str]) -> pd.DataFrame:
        """Return rows by id, in any order."""
        with _lance_errors(self.address):
            self._require_same_meta()
            return self._table.search().where(to_sql(In("id", tuple(ids)))).select(list(columns)).to_pandas()

    def pages(self, columns: Sequence[str]) -> Iterator[pd.DataFrame]:
        """Yield all rows, a few thousand at a time."""
        with _lance_errors(self.address):
            for batch in self._table.search().select(list(columns)).to_batches(PAGE_SIZE):
                yield batch.to_pandas()

    def count(self) -> int:
        with _lance_errors(self.address):
            return self._table.count_rows()

    def search(self, queries: Float[np.ndarray, "Q D"], k: int, where: Condition | None) -> list[list[dict]]:
        """Return `HIT_FIELDS` and ``similarity`` of the k nearest rows that meet a condition, for each query."""
        with _lance_errors(self.address):
            with self._lock:  # one product already uses all cores
                in_memory = self._load()
                if in_memory is not None:
                    return self._search_in_memory(*in_memory, queries, k, where)
            return [self._search_on_disk(query, k, where) for query in queries]

    def _search_in_memory(
        self, texts: pa.Table, embeddings: np.ndarray, queries: np.ndarray, k: int, where: Condition | None
    ) -> list[list[dict]]:
        rows = np.arange(len(embeddings)) if where is None else np.flatnonzero(matches(where, texts))
        few = len(rows) < len(embeddings) / 4  # else it is faster to compute all similarities than to copy
        chosen = embeddings[rows] if few else embeddings
        found = []
        for query in queries:
            similarity = chosen @ query if few else (chosen @ query)[rows]
            nearest = np.argpartition(-similarity, k)[:k] if k < len(similarity) else np.arange(len(similarity))
            nearest = nearest[np.argsort(-similarity[nearest], kind="stable")]
            hits = texts.take(rows[nearest]).append_column("similarity", pa.array(similarity[nearest]))
            found.append(hits.to_pylist())
        return found

    def _load(self) -> tuple[pa.Table, np.ndarray] | None:
        """Return the texts and embeddings of all rows, read again only if the table has changed; None if too large."""
        version = self._table.version
        if self._version != version:
            self._require_same_meta()
            self._in_memory = None
            if self.count() < self.exact_below:
                data = self._table.search().select([*HIT_FIELDS, "embedding"]).to_arrow()
                embeddings = data["embedding"].combine_chunks().flatten().to_numpy().reshape(-1, self.dim)
                self._in_memory = data.select(HIT_FIELDS).combine_chunks(), embeddings
            self._version = version
        return self._in_memory

    def _search_on_disk(self, query: np.ndarray, k: int, where: Condition | None) -> list[dict]:
        """Search by the index; exactly without one or with a condition, since matches may be in other partitions."""
        probes = self._trial_probes or self._index_settings().get("probes")
        search = self._table.search(query, vector_column_name="embedding").distance_type("dot")
        search = search.select([*HIT_FIELDS, "_distance"]).limit(k)
        if where is not None:
            search = search.where(to_sql(where))
        found: list[dict] = []
        if where is None and probes:
            found = search.nprobes(probes).refine_factor(CANDIDATES).to_list()
        if len(found) < k:  # none yet, or fewer in the partitions probed
            found = search.bypass_vector_index().to_list()
        return [{**{name: row[name] for name in HIT_FIELDS}, "similarity": 1 - row["_distance"]} for row in found]

    @property
    def index_type(self) -> str:
        """``IVF`` with an index; ``FLAT`` without, or if the rows are `GROWTH` times those that it was built for."""
        with _lance_errors(self.address):
            return "IVF" if self.count() < GROWTH * self._index_settings().get("rows", 0) else "FLAT"

    def _index_settings(self) -> dict[str, int]:
        """Return ``probes``, and ``rows``, how many there were when the index was built; empty without an index."""
        metadata = self._metadata()
        return {name: int(metadata[key]) for name in ("probes", "rows") if (key := name.encode()) in metadata}

    def _metadata(self) -> dict[bytes, bytes]:
        return self._table.schema.field("embedding").metadata or {}

    def _require_same_meta(self) -> None:
        if self._metadata().get(META, b"").decode() != self.meta:
            hint = "open it again, or restart the server"
            raise InputError("has another root or model since it was opened", path=self.address, hint=hint)

    def build_index(self, measure_recall: Callable[[], float]) -> None:
        """Index the rows for approximate search, if possible with a recall of at least 0.99."""
        rows = self.count()
        partitions = max(1, round(rows**0.5))
        with _lance_errors(self.address):
            config = IvfSq(distance_type="dot", num_partitions=partitions)
            self._table.create_index("embedding", config=config, replace=True)
            try:
                self._trial_probes = 8
                while measure_recall() < ENOUGH_RECALL and self._trial_probes < partitions:
                    self._trial_probes *= 2
                settings = {"probes": str(self._trial_probes), "rows": str(rows)}
            finally:
                self._trial_probes = None
            self._table.update_field_metadata({"path": "embedding", "metadata": settings})  # completes the index

    def optimize(self) -> None:
        """Compact files after many writes, and delete versions older than the changes that can be undone."""
        with _lance_errors(self.address):
            versions = self._table.list_versions()
            if len(versions) <= MAX_VERSIONS and not self._index_settings():
                return
            kept = {tag["version"] for tag in self._table.tags.list().values()}
            times = [version["timestamp"] for version in versions if version["version"] in kept]
            age = datetime.now() - min(times, default=datetime.now())  # LanceDB's times have no zone
            try:
                self._table.optimize(cleanup_older_than=age + timedelta(hours=1))
            except RuntimeError as error:
                if "conflict" not in str(error):  # another process is writing; the next one tidies up
                    raise

    def close(self) -> None:
        self._version, self._in_memory = -1, None

    @contextmanager
    def undoable(self, allow_migration: bool = False) -> Iterator[None]:
        """Keep the present rows for `undo` if the block changes them; InputError in a migration, unless allowed."""
        if not allow_migration:
            self._require_no_migration()
        with _lance_errors(self.address):
            before, tag = self._table.version, datetime.now(UTC).strftime("%Y-%m-%dT%H.%M.%S.%f")
            self._table.tags.create(tag, before)
        try:
            yield
        finally:
            with _lance_errors(self.address):
                old = [tag] if self._table.version == before else sorted(self._table.tags.list())[:-MAX_CHANGES]
                for name in old:
                    self._table.tags.delete(name)

    def _require_no_migration(self) -> None:
        if LanceStore.open(self.migration):
            hint = f"finish the migration, or delete {self.migration}"
            raise InputError("is being migrated to another model", path=self.address, hint=hint)

    def history(self) -> list[tuple[str, int]]:
        """Return when each change that can be undone began, the latest first, and how many rows there were before."""
        with _lance_errors(self.address):
            past, changes = _connect(self.address).open_table(TABLE), []
            for tag in sorted(self._table.tags.list(), reverse=True):
                past.checkout(tag)
                changes.append((f"{tag[:10]} {tag[11:19].replace('.', ':')} UTC", past.count_rows()))
            return changes

    def undo(self) -> None:
        """Restore rows and metadata as they were before the latest change of `history`."""
        self._require_no_migration()
        with _lance_errors(self.address):
            tag = max(self._table.tags.list(), default=None)
            if tag is None:
                raise InputError("no change that can be undone", path=self.address)
            self._table.restore(tag)
            self._table.tags.delete(tag)

    def set_meta(self, meta: str) -> None:
        with _lance_errors(self.address):
            self._require_same_meta()
            self._table.update_field_metadata({"path": "embedding", "metadata": {META.decode(): meta}})
        self.meta = meta

    @property
    def migration(self) -> str:
        """Address of the store that is filled during a migration to another model."""
        return f"{self.address}/migration"

    @property
    def version(self) -> int:
        """A number that grows with each change."""
        with _lance_errors(self.address):
            return self._table.version

    def replace_by(self, other: LanceStore, meta: str, version: int) -> None:
        """Replace rows and metadata atomically by those at `migration`; InputError if changed since `version`."""
        changed = InputError("changed during the migration", path=self.address, hint="run the command again")
        with _lance_errors(self.address), self.undoable(allow_migration=True):
            if self._table.version != version:
                raise changed
            data = other._table.search().to_batches(PAGE_SIZE)
            table = _connect(self.address).create_table(TABLE, data, schema=_schema(other.dim, meta), mode="overwrite")
            if table.version != version + 1:  # another process has written during the copy
                table.restore(table.version - 1)
                raise changed
            _connect(other.address).drop_table(TABLE)
        if folder := _local_folder(other.address):
            shutil.rmtree(folder, ignore_errors=True)


def _schema(dim: int, meta: str) -> pa.Schema:
    keys = {"id": PRIMARY_KEY}
    fields = [pa.field(name, pa.string(), nullable=False, metadata=keys.get(name)) for name in TEXT_FIELDS]
    embedding = pa.field("embedding", pa.list_(pa.float32(), dim), nullable=False, metadata={META: meta})
    return pa.schema([*fields, embedding])


def to_sql(condition: Condition) -> str:
    """Render a condition for LanceDB, which writes the literals."""
    match condition:
        case In(field, values):
            return col(field).isin(list(values)).to_sql()
        case Like(field):
            return f"{col(field).to_sql()} LIKE {lit(condition.pattern).to_sql()}"
        case Not(inner):
            return f"NOT ({to_sql(inner)})"
        case And(conditions):
            return " AND ".join(f"({to_sql(part)})" for part in conditions)
        case Or(conditions):
            return " OR ".join(f"({to_sql(part)})" for part in conditions)


def matches(condition: Condition, texts: pa.Table) -> np.ndarray:
    """Evaluate a condition on rows in memory."""
    match condition:
        case In(field, values):
            return pc.is_in(texts[field], pa.array(values, pa.string())).to_numpy()  # pyright: ignore[reportAttributeAccessIssue]
        case Like(field, parts):  # not by match_like, which is wrong for some patterns with backslashes
            pattern = rf"(?s)\A{'.*'.join(map(re.escape, parts))}\z"
            return pc.match_substring_regex(texts[field], pattern).to_numpy()  # pyright: ignore[reportAttributeAccessIssue]
        case Not(inner):
            return ~matches(inner, texts)
        case And(conditions):
            return np.logical_and.reduce([matches(part, texts) for part in conditions])
        case Or(conditions):
            return np.logical_or.reduce([matches(part, texts) for part in conditions])


def _local_folder(address: str) -> Path | None:
    return None if "://" in address else Path(address)


def _newest_version(files: Path) -> int:
    """Read the number of the newest version, which LanceDB writes beside the versions; 0 if it is not there."""
    try:
        return int(json.loads((files / "_versions" / "latest_version_hint.json").read_bytes())["version"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def _connect(address: str) -> Any:
    return lancedb.connect(address, read_consistency_interval=timedelta(0))  # always the latest version


@contextmanager
def _lance_errors(address: str) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except (RuntimeError, ValueError, OSError) as error:  # LanceDB has no base class of its own
        if found := re.search(r"\(os error (\d+)\)", str(error)):  # LanceDB raises RuntimeError for these too
            with suppress(OSError), os_errors_as_input_errors(address, "run the command again"):
                raise OSError(int(found[1]), "") from error
        problem = re.sub(r", \S*\.rs:\d+.*", "", str(error).partition("\n")[0])[:300]  # no places in its sources
        raise InputError(f"LanceDB: {problem}", path=address) from error
