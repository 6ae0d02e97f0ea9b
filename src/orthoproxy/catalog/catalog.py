"""A catalog: embeddings of images with their paths and labels, in a Milvus Lite folder or on a Milvus server."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Float
from pydantic import BaseModel

from orthoproxy.catalog.filters import parse_filter, quote
from orthoproxy.catalog.milvus import (
    COLLECTION,
    TEXT_FIELDS,
    Client,
    MilvusException,
    connect,
    create_collection,
    create_index,
    first_line,
    is_server,
    open_lite,
)
from orthoproxy.core.errors import InputError, os_errors_as_input_errors
from orthoproxy.core.files import LOCK, atomic_write, folder_lock
from orthoproxy.embedding.file_formats import Dim, read_json, validate_json

FLAT_BELOW = 200_000  # rows; above, HNSW is faster than exact search
MAX_RESULTS = 16_384  # of one query to a Milvus server
PAGE_SIZE = 100_000  # rows read at a time from a folder
EF_SEARCH = 128  # HNSW's candidates per search
UNIT_TOLERANCE = 1e-3
INDEX_AGAIN = "update orthoproxy, or index again"


@dataclass(frozen=True)
class Hit:
    """A search result of `Catalog.search`.

    Parameters
    ----------
    id
        Primary key of the image.
    path
        Absolute path of the image file.
    label, group
        Its class and group, empty if unknown.
    similarity
        Cosine similarity to the query, from -1 to 1.
    """

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
    """Return the primary key of an image: 32 hexadecimal digits of the SHA-256 of its path relative to the root."""
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

    def __init__(
        self, client: Client, collection: str, address: str, meta: CatalogMeta, release: Callable[[], None]
    ) -> None:
        self.address, self.ef = address, EF_SEARCH
        self.dim, self.model, self.model_path, self.root = meta.dim, meta.model, meta.model_path, meta.root
        self._client, self._collection, self._release = client, collection, release
        self._has_written = False

    @classmethod
    def create(cls, address: str, dim: int, model: str, model_path: str, root: str | Path = ".") -> Catalog:
        """Create an empty catalog; raises InputError if the address is in use, or the server does not answer.

        Parameters
        ----------
        address
            Folder, or ``http://host:19530``; a name after the slash distinguishes the catalogs of a server.
        dim
            Embedding dimension D.
        model, model_path
            Identity of the embedding model, and where it is, to embed queries.
        root
            Folder that image paths are relative to.
        """
        root = str(Path(root).absolute())
        meta = CatalogMeta(format_version=1, root=root, dim=dim, model=model, model_path=model_path)
        if not is_server(address):
            return cls._in_folder(Path(address), meta)
        with ExitStack() as stack:
            client, name = connect(address)
            stack.callback(client.close)
            if client.has_collection(name):
                raise InputError(f"collection {name} exists already", path=address, hint="choose another name")
            create_collection(client, name, dim, meta.model_dump_json())
            return cls(client, name, address, meta, stack.pop_all().close)

    @classmethod
    def open(cls, address: str) -> Catalog:
        """Open a catalog; a server's token is read from ``MILVUS_TOKEN``.

        Raises InputError if it does not exist, has an unknown format version, or is open in another process.
        """
        if not is_server(address):
            return cls._in_folder(Path(address))
        with ExitStack() as stack:
            client, name = connect(address)
            stack.callback(client.close)
            if not client.has_collection(name):
                raise _no_catalog(address)
            description = client.describe_collection(name).get("description", "")
            meta = validate_json(CatalogMeta, description, address, INDEX_AGAIN)
            client.load_collection(name)
            return cls(client, name, address, meta, stack.pop_all().close)

    @classmethod
    def _in_folder(cls, folder: Path, new: CatalogMeta | None = None) -> Catalog:
        """Open the catalog of a folder, or create one."""
        path = folder / "catalog.json"
        if not new and not path.is_file():
            raise _no_catalog(str(folder))
        with ExitStack() as stack:
            with os_errors_as_input_errors(folder, "a catalog must be writable"):
                stack.enter_context(folder_lock(folder))
            if new:
                _require_free(folder)
                shutil.rmtree(folder / "milvus.db", ignore_errors=True)  # of a killed process that was creating it
            meta = new or read_json(CatalogMeta, path, INDEX_AGAIN)
            client = stack.enter_context(open_lite(folder))
            if new:
                create_collection(client, COLLECTION, meta.dim, "")
                atomic_write(path, meta.model_dump_json(indent=2) + "\n")  # completes the catalog
            else:
                client.load_collection(COLLECTION)
            return cls(client, COLLECTION, str(folder), meta, stack.pop_all().close)

    @staticmethod
    def exists(address: str) -> bool:
        """Whether there is a catalog at an address."""
        if not is_server(address):
            return (Path(address) / "catalog.json").is_file()
        client, name = connect(address)
        with closing(client):
            return client.has_collection(name)

    def upsert(self, rows: pd.DataFrame, embeddings: Float[np.ndarray, "N D"]) -> None:
        """Insert images, replacing those with the same id; durable on return.

        The columns of `rows` are ``id, path, label, group, content``: the path is relative to the root, the content a
        hash of the file. The rows of `embeddings`, in the same order, have unit length.
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
        """Return ``id, path, label, group, content`` and, on request, ``embedding``, in the order of the ids.

        Ids that do not exist are skipped.
        """
        columns = [*TEXT_FIELDS, *(["embedding"] if with_embeddings else [])]
        found: dict[str, dict[str, Any]] = {}
        for part in _parts(list(dict.fromkeys(ids)), 1000):
            for row in self._query(f"id in {_list(part)}", columns):
                found[row["id"]] = {**row, "embedding": np.float32(row["embedding"])} if with_embeddings else row
        return pd.DataFrame([found[key] for key in ids if key in found], columns=columns)

    def iterate_rows(self, columns: Sequence[str] = tuple(TEXT_FIELDS)) -> Iterator[pd.DataFrame]:
        """Yield these columns of all images, page by page, in ascending ranges of ids.

        Rows may be deleted meanwhile.
        """
        return (pd.DataFrame(page, columns=list(columns)) for page in self._pages(list(columns)))

    def sample_ids(self, count: int) -> list[str]:
        """Return the ids of up to `count` images; as ids are hashes of paths, this is a random sample."""
        fraction = min(1.0, 4 * count / max(1, len(self)))
        below = "g" if fraction == 1 else f"{round(fraction * 16**8):08x}"
        rows = self._query(f'id < "{below}"', ["id"])
        return sorted(row["id"] for row in rows)[:count]

    def __len__(self) -> int:
        return int(self._query("", ["count(*)"])[0]["count(*)"])

    def search(
        self, queries: Float[np.ndarray, "Q D"], k: int = 10, where: str | None = None, diverse: bool = False
    ) -> list[list[Hit]]:
        """Find the k images most similar to each query, the most similar first.

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
        """Return counts, of which `duplicates` are copies of another image's file, and the attributes."""
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
            **{name: getattr(self, name) for name in ("dim", "index", "model", "model_path", "root")},
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

    def iterate_embeddings(self) -> Iterator[Float[np.ndarray, "N D"]]:
        """Yield the embeddings of all images, some thousand at a time."""
        for page in self._pages(["embedding"]):
            yield np.array([row["embedding"] for row in page], dtype=np.float32).reshape(-1, self.dim)

    def close(self) -> None:
        """Release the folder or the connection; may be called more than once."""
        self._release()

    def __enter__(self) -> Catalog:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _check(self, embeddings: np.ndarray) -> None:
        if embeddings.ndim != 2 or embeddings.shape[1] != self.dim:
            expected = f"rows of {self.dim}, the dimension of {self.address}"
            raise InputError(f"shape {embeddings.shape}", field="embeddings", expected=expected)
        if not (np.abs(np.linalg.norm(embeddings, axis=1) - 1) < UNIT_TOLERANCE).all():  # nor NaN
            raise InputError("not all rows have unit length", field="embeddings", hint="divide each by its length")

    def _query(self, condition: str, columns: list[str]) -> list[dict[str, Any]]:
        limit = {} if columns == ["count(*)"] else {"limit": MAX_RESULTS if is_server(self.address) else 2**31}
        with self._milvus_errors():
            return self._client.query(
                self._collection, filter=condition, output_fields=columns, consistency_level="Strong", **limit
            )

    def _pages(self, columns: list[str]) -> Iterator[list[dict[str, Any]]]:
        """Yield all rows by ranges of ids, which are hashes and so spread evenly.

        Milvus Lite scans all rows for each range, so there the ranges are larger.
        """
        size = 8000 if is_server(self.address) else PAGE_SIZE
        if "embedding" in columns:  # Milvus returns lists of Python floats, of 32 bytes each
            size = max(1, min(size, 8_000_000 // self.dim))
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
    if (folder / "catalog.json").is_file():
        raise InputError("holds a catalog already", path=folder, hint="choose another folder")
    others = {path.name for path in folder.iterdir()} - {"milvus.db", LOCK}
    if others:
        raise InputError(f"holds {min(others)}, but no catalog", path=folder, hint="choose another folder")


def _list(values: Iterable[str]) -> str:
    return f"[{', '.join(map(quote, values))}]"


def _parts(items: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    return (items[first : first + size] for first in range(0, len(items), size))
