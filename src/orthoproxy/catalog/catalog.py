"""A catalog: embeddings of images with their paths and labels, in a Milvus Lite folder or on a Milvus server."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np
import pandas as pd
from filelock import FileLock
from jaxtyping import Float
from pydantic import BaseModel

from orthoproxy.catalog.filters import parse_filter, quote
from orthoproxy.catalog.milvus import (
    COLLECTION,
    TEXT_FIELDS,
    Client,
    MilvusException,
    close_lite,
    closed_on_error,
    connect,
    create_collection,
    create_index,
    first_line,
    is_server,
    lock_folder,
    open_lite,
)
from orthoproxy.core.errors import InputError
from orthoproxy.core.files import atomic_write
from orthoproxy.embedding.file_formats import Dim, read_json, validate_json

FLAT_BELOW = 200_000  # rows; above, HNSW is faster than exact search
MAX_RESULTS = 16_384  # of one query to a Milvus server
EF_SEARCH = 128  # HNSW's candidates per search
UNIT_TOLERANCE = 1e-3
INDEX_AGAIN = "update orthoproxy, or index again"


@dataclass(frozen=True)
class Hit:
    """A search result: `id`, absolute `path`, `label`, `group`, and cosine `similarity` to the query."""

    id: str
    path: str
    label: str
    group: str
    similarity: float


class CatalogMeta(BaseModel, frozen=True):
    """The catalog.json of a folder, or the description of a server's collection."""

    format_version: Literal[1]
    root: str
    dim: Dim
    model: str
    model_path: str


def image_id(relative_path: str) -> str:
    """Return the primary key of an image: 32 hexadecimal digits of the SHA-256 of its relative path."""
    return hashlib.sha256(os.fsencode(relative_path)).hexdigest()[:32]


class Catalog:
    """A collection of embeddings in a Milvus Lite folder or on a Milvus server.

    Created by `create` or `open`; a context manager that closes it. It reads its own writes; searches see the writes of
    other clients of a server after some seconds.

    Examples
    --------
    >>> import tempfile
    >>> folder = tempfile.mkdtemp() + "/catalog"
    >>> rows = pd.DataFrame({"path": ["a.png", "b.png"], "label": ["cat", "dog"], "group": "", "content": ["1", "2"]})
    >>> rows.insert(0, "id", rows["path"].map(image_id))
    >>> with Catalog.create(folder, dim=2, model="0f", model_path="runs/pets", root="/pets") as catalog:
    ...     catalog.upsert(rows, np.eye(2, dtype=np.float32))
    ...     [(hit.label, hit.similarity) for hit in catalog.search(np.eye(2)[:1], k=1)[0]]
    [('cat', 1.0)]
    """

    def __init__(self, client: Client, collection: str, address: str, meta: CatalogMeta) -> None:
        self.address, self.ef = address, EF_SEARCH
        self.dim, self.model, self.model_path, self.root = meta.dim, meta.model, meta.model_path, meta.root
        self._client, self._collection = client, collection
        self._has_written = False
        self._release: Callable[[], None] = client.close

    @classmethod
    def create(cls, address: str, dim: int, model: str, model_path: str, root: str | Path = ".") -> Catalog:
        """Create an empty catalog.

        Parameters
        ----------
        address
            Folder, or ``http://host:19530``; a name after the slash distinguishes the catalogs of a server.
        dim
            Embedding dimension D.
        model
            Identity of the embedding model; embeddings of other models are rejected.
        model_path
            Where this model is, to embed queries.
        root
            Folder that image paths are relative to.

        Raises
        ------
        InputError
            If the address is in use, or the server does not answer.
        """
        meta = CatalogMeta(
            format_version=1, root=str(Path(root).absolute()), dim=dim, model=model, model_path=model_path
        )
        if is_server(address):
            client, name = connect(address)
            with closed_on_error(client):
                if client.has_collection(name):
                    raise InputError(f"collection {name} exists already", path=address, hint="choose another name")
                create_collection(client, name, dim, meta.model_dump_json())
                return cls(client, name, address, meta)
        folder = Path(address)
        _require_free(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with lock_folder(folder) as lock:
            shutil.rmtree(folder / "milvus.db", ignore_errors=True)  # of a process that was killed while creating it
            client = open_lite(folder)
            create_collection(client, COLLECTION, dim, "")
            atomic_write(folder / "catalog.json", meta.model_dump_json(indent=2) + "\n")  # completes the catalog
            return cls._of_folder(client, folder, meta, lock)

    @classmethod
    def open(cls, address: str) -> Catalog:
        """Open a catalog at an address as in `create`; a server's token is read from ``MILVUS_TOKEN``.

        Raises
        ------
        InputError
            If it does not exist, has an unknown format version, or is open in another process.
        """
        if not is_server(address):
            folder = Path(address)
            if not (folder / "catalog.json").is_file():
                raise _no_catalog(address)
            meta = read_json(CatalogMeta, folder / "catalog.json", INDEX_AGAIN)
            with lock_folder(folder) as lock:
                client = open_lite(folder)
                client.load_collection(COLLECTION)
                return cls._of_folder(client, folder, meta, lock)
        client, name = connect(address)
        with closed_on_error(client):
            if not client.has_collection(name):
                raise _no_catalog(address)
            description = client.describe_collection(name).get("description", "")
            meta = validate_json(CatalogMeta, description, address, INDEX_AGAIN)
            client.load_collection(name)
            return cls(client, name, address, meta)

    @staticmethod
    def exists(address: str) -> bool:
        """Whether there is a catalog at an address."""
        if not is_server(address):
            return (Path(address) / "catalog.json").is_file()
        client, name = connect(address)
        try:
            return client.has_collection(name)
        finally:
            client.close()

    @classmethod
    def _of_folder(cls, client: Client, folder: Path, meta: CatalogMeta, lock: FileLock) -> Catalog:
        catalog = cls(client, COLLECTION, str(folder), meta)

        def release() -> None:
            close_lite(client, folder)
            lock.release()

        catalog._release = release
        return catalog

    def upsert(self, rows: pd.DataFrame, embeddings: Float[np.ndarray, "N D"]) -> None:
        """Insert images, replacing those with the same id; durable on return.

        Parameters
        ----------
        rows
            Columns ``id, path, label, group, content``: the path relative to the root, the content a hash of the file.
        embeddings
            Unit-length rows in the same order.

        Raises
        ------
        InputError
            If the embeddings have another dimension or no unit length, or a text is too long.
        """
        embeddings = np.ascontiguousarray(embeddings, dtype=np.float32)
        self._check(embeddings)
        if len(rows) != len(embeddings):
            raise InputError(f"{len(embeddings)} rows", field="embeddings", expected=f"{len(rows)}, one per image")
        texts = rows[list(TEXT_FIELDS)].astype(str)
        for field, limit in TEXT_FIELDS.items():
            long = next((text for text in texts[field] if len(text) * 4 > limit and len(text.encode()) > limit), None)
            if long is not None:
                problem = f"{long[:60]}... has {len(long.encode())} bytes"
                raise InputError(problem, field=field, expected=f"at most {limit}")
        records = texts.to_dict("records")
        step = max(1, min(2000, 4_000_000 // self.dim))
        for first in range(0, len(records), step):
            vectors = embeddings[first : first + step].tolist()
            pairs = zip(records[first : first + step], vectors, strict=True)
            self._has_written = True
            with self._milvus_errors():
                self._client.upsert(self._collection, [{**row, "embedding": vector} for row, vector in pairs])

    def delete(self, ids: Sequence[str]) -> int:
        """Delete images by id and return how many existed."""
        self._has_written, deleted = True, 0
        for part in _parts(list(dict.fromkeys(ids)), 1000):
            existing = [row["id"] for row in self._query(f"id in {_list(part)}", ["id"])]
            if existing:
                with self._milvus_errors():
                    self._client.delete(self._collection, ids=existing)
            deleted += len(existing)
        return deleted

    def get(self, ids: Sequence[str], with_embeddings: bool = False) -> pd.DataFrame:
        """Look up images.

        Parameters
        ----------
        ids
            Primary keys.
        with_embeddings
            Return the embeddings too.

        Returns
        -------
        pandas.DataFrame
            ``id, path, label, group, content`` and, on request, ``embedding``, in the order of the ids; ids that do not
            exist are skipped.
        """
        columns = [*TEXT_FIELDS, *(["embedding"] if with_embeddings else [])]
        found: dict[str, dict[str, Any]] = {}
        for part in _parts(list(dict.fromkeys(ids)), 1000):
            for row in self._query(f"id in {_list(part)}", columns):
                found[row["id"]] = {**row, "embedding": np.float32(row["embedding"])} if with_embeddings else row
        return pd.DataFrame([found[key] for key in ids if key in found], columns=columns)

    def iterate_rows(self, columns: Sequence[str] = tuple(TEXT_FIELDS)) -> Iterator[pd.DataFrame]:
        """Yield these columns of all images, some thousand rows at a time, ordered by id."""
        for page in self._pages(list(columns)):
            yield pd.DataFrame(page, columns=list(columns))

    def rows(self, columns: Sequence[str] = tuple(TEXT_FIELDS)) -> pd.DataFrame:
        """Return these columns of all images, ordered by id."""
        return pd.concat(self.iterate_rows(columns), ignore_index=True).sort_values("id", ignore_index=True)

    def ids(self) -> dict[str, str]:
        """Return the id of each image and the hash of its content."""
        pages = self.iterate_rows(["id", "content"])
        return {key: content for page in pages for key, content in zip(page["id"], page["content"], strict=True)}

    def sample_ids(self, count: int) -> list[str]:
        """Return the ids of up to `count` images; as ids are hashes of paths, this is a random sample."""
        fraction = min(1.0, 4 * count / max(1, len(self)))
        below = "g" if fraction == 1 else f"{round(fraction * 16**8):08x}"
        rows = self._query(f'id < "{below}"', ["id"])
        return sorted(row["id"] for row in rows)[:count]

    def __len__(self) -> int:
        with self._milvus_errors():
            counted = self._client.query(
                self._collection, filter="", output_fields=["count(*)"], consistency_level="Strong"
            )
        return int(counted[0]["count(*)"])

    def search(
        self, queries: Float[np.ndarray, "Q D"], k: int = 10, where: str | None = None, diverse: bool = False
    ) -> list[list[Hit]]:
        """Find the images most similar to each query.

        Parameters
        ----------
        queries
            Unit-length rows.
        k
            Number of results per query.
        where
            Filter on the results; see `filters.parse_filter`.
        diverse
            At most one image per group, or per label for images without a group.

        Returns
        -------
        list of list of Hit
            For each query, the most similar first.

        Raises
        ------
        InputError
            If k, the filter or the queries are invalid.
        """
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        self._check(queries)
        if not 1 <= k <= MAX_RESULTS:
            raise InputError(str(k), field="k", expected=f"1 to {MAX_RESULTS}")
        condition = parse_filter(where) if where else ""
        if diverse:
            return [self._search_diverse(query[None], k, condition) for query in queries]
        return self._search(queries, k, condition)

    def _search(self, queries: np.ndarray, k: int, condition: str) -> list[list[Hit]]:
        if not len(queries):
            return []
        with self._milvus_errors():
            results = self._client.search(
                self._collection,
                data=list(queries),
                filter=condition,
                limit=k,
                output_fields=["path", "label", "group"],
                search_params={"metric_type": "IP", "params": {"ef": max(self.ef, k)}},
                consistency_level="Strong" if self._has_written else "Bounded",
            )
        return [[self._hit(hit["id"], hit["entity"], hit["distance"]) for hit in hits] for hits in results]

    def _hit(self, key: str, row: dict[str, str], similarity: float) -> Hit:
        return Hit(key, str(Path(self.root) / row["path"]), row["label"], row["group"], float(similarity))

    def _search_diverse(self, query: np.ndarray, k: int, condition: str) -> list[Hit]:
        """Search again without the groups found so far, until there are enough results or no more rows."""
        best: dict[tuple[str, str], Hit] = {}
        limit = min(MAX_RESULTS, 4 * k)
        while True:
            found = {field: [value for name, value in best if name == field] for field in ("group", "label", "id")}
            parts = [f"({condition})"] if condition else []
            if found["group"]:
                parts.append(f"not (group in {_list(found['group'])})")
            if found["label"]:
                parts.append(f'not (group == "" and label in {_list(found["label"])})')
            if found["id"]:
                parts.append(f"not (id in {_list(found['id'])})")
            hits = self._search(query, limit, " and ".join(parts))[0]
            for hit in hits:
                field = next(name for name in ("group", "label", "id") if getattr(hit, name))
                best.setdefault((field, getattr(hit, field)), hit)
            if len(best) >= k or len(hits) < limit:
                return sorted(best.values(), key=lambda hit: -hit.similarity)[:k]

    def info(self) -> dict[str, Any]:
        """Describe the catalog.

        Returns
        -------
        dict
            ``images``, ``labels``, ``groups``, ``duplicates`` (images whose file is a copy of another's), ``dim``,
            ``index`` (its kind), ``model``, ``model_path``, ``root``.
        """
        images, distinct = 0, {name: set[str]() for name in ("label", "group", "content")}
        for page in self.iterate_rows(["label", "group", "content"]):
            images += len(page)
            for name, values in distinct.items():
                values.update(page[name].unique())
        return {
            "images": images,
            "labels": len(distinct["label"] - {""}),
            "groups": len(distinct["group"] - {""}),
            "duplicates": images - len(distinct["content"]),
            "dim": self.dim,
            "index": self.index,
            "model": self.model,
            "model_path": self.model_path,
            "root": self.root,
        }

    def flush(self) -> None:
        """Compact what was written; to be called once after many writes, which are durable without it."""
        with self._milvus_errors():
            self._client.flush(self._collection)

    @property
    def index(self) -> str:
        """Kind of index: ``FLAT`` (exact) or ``HNSW``."""
        with self._milvus_errors():
            return str(self._client.describe_index(self._collection, "embedding")["index_type"])

    def set_index(self, kind: str) -> None:
        """Build an index of another kind, ``FLAT`` or ``HNSW``; searches wait for it."""
        with self._milvus_errors():
            self._client.release_collection(self._collection)
            self._client.drop_index(self._collection, "embedding")
            create_index(self._client, self._collection, kind)
            self._client.load_collection(self._collection)

    def vectors(self) -> Iterator[tuple[list[str], Float[np.ndarray, "N D"]]]:
        """Yield the ids and embeddings of all images, some thousand at a time."""
        for page in self._pages(["id", "embedding"]):
            if page:
                yield [row["id"] for row in page], np.array([row["embedding"] for row in page], dtype=np.float32)

    def close(self) -> None:
        """Release the folder or the connection; may be called more than once."""
        release, self._release = self._release, lambda: None
        release()

    def __enter__(self) -> Catalog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check(self, embeddings: np.ndarray) -> None:
        if embeddings.ndim != 2 or embeddings.shape[1] != self.dim:
            expected = f"rows of {self.dim}, the dimension of {self.address}"
            raise InputError(f"shape {embeddings.shape}", field="embeddings", expected=expected)
        if not (np.abs(np.linalg.norm(embeddings, axis=1) - 1) < UNIT_TOLERANCE).all():  # nor NaN
            raise InputError("not all rows have unit length", field="embeddings", hint="divide each by its length")

    def _query(self, condition: str, columns: list[str]) -> list[dict[str, Any]]:
        with self._milvus_errors():
            return self._client.query(
                self._collection,
                filter=condition,
                output_fields=columns,
                limit=MAX_RESULTS if is_server(self.address) else 2**31,
                consistency_level="Strong",
            )

    def _pages(self, columns: list[str]) -> Iterator[list[dict[str, Any]]]:
        """Yield all rows by ranges of ids, which are hashes and so spread evenly.

        Milvus Lite scans all rows for each range, so there the ranges are larger.
        """
        size, floats = (8000, 8_000_000) if is_server(self.address) else (100_000, 40_000_000)
        if "embedding" in columns:
            size = max(1, min(size, floats // self.dim))
        count = max(1, -(-len(self) // size))
        for first, last in pairwise([*(f"{number * 16**8 // count:08x}" for number in range(count)), "g"]):
            yield self._query(f'id >= "{first}" and id < "{last}"', columns)

    @contextmanager
    def _milvus_errors(self) -> Iterator[None]:
        try:
            yield
        except MilvusException as error:
            raise InputError(f"Milvus: {first_line(error)}", path=self.address) from error


def _no_catalog(address: str) -> InputError:
    return InputError("no catalog", path=address, hint=f"create one: orthoproxy index {address} IMAGES --model MODEL")


def _require_free(folder: Path) -> None:
    """Raise InputError unless a catalog can be created in the folder, where a killed process may have begun one."""
    if folder.exists() and not folder.is_dir():
        raise InputError("is a file", path=folder, expected="a folder")
    if (folder / "catalog.json").is_file():
        raise InputError("holds a catalog already", path=folder, hint="choose another folder")
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    others = {name for name in names if name not in ("milvus.db", "lock", "lock.pid") and not name.endswith(".tmp")}
    if others:
        raise InputError(f"holds {min(others)}, but no catalog", path=folder, hint="choose another folder")


def _list(values: Iterable[str]) -> str:
    return f"[{', '.join(map(quote, values))}]"


def _parts(items: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    return (items[first : first + size] for first in range(0, len(items), size))
