"""A catalog: embeddings of images with their paths and labels, in a Milvus Lite folder or on a Milvus server."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pandas as pd
from filelock import FileLock
from jaxtyping import Float

from orthoproxy.catalog.filters import parse_condition, quote
from orthoproxy.catalog.milvus import (
    COLLECTION,
    TEXTS,
    Client,
    MilvusException,
    close_lite,
    closed_on_error,
    connect,
    create_collection,
    create_index,
    first_line,
    held,
    is_server,
    open_lite,
)
from orthoproxy.core.errors import InputError
from orthoproxy.core.files import atomic_write
from orthoproxy.core.safe_parsing import parse_json

FORMAT_VERSION = 1
FLAT_BELOW = 200_000  # rows; with more, an index of another kind answers faster than a look at every row
MOST = 16_384  # rows that a Milvus server returns at once
EF = 128  # candidates that a search of HNSW keeps
UNIT = 1e-3  # how far from 1 an embedding's length may be


@dataclass(frozen=True)
class Hit:
    """An image found: its `id`, absolute `path`, `label`, `group`, and cosine `similarity` to the query."""

    id: str
    path: str
    label: str
    group: str
    similarity: float


def image_id(relative_path: str) -> str:
    """Return the primary key of an image: 16 bytes of the SHA-256 of its path below the root, as hex.

    Parameters
    ----------
    relative_path
        With ``/`` between folders.

    Examples
    --------
    >>> image_id("cats/1.png")
    '030c42b796efb5e275bad8a16a45e5a1'
    """
    return hashlib.sha256(os.fsencode(relative_path)).hexdigest()[:32]


class Catalog:
    """A collection of embeddings in a Milvus Lite folder or on a Milvus server.

    Made by `create` or `open`; a context manager, which closes it. What this object wrote, it reads; what others write
    to a server meanwhile, its searches see some seconds later.

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

    def __init__(self, client: Client, collection: str, address: str, facts: dict[str, Any]) -> None:
        self.address = address
        self.dim: int = facts["dim"]
        self.model: str = facts["model"]
        self.model_path: str = facts["model_path"]
        self.root: str = facts["root"]
        self.ef = EF
        self._client, self._collection = client, collection
        self._wrote = False
        self._release: Callable[[], None] = client.close

    @classmethod
    def create(cls, address: str, dim: int, model: str, model_path: str, root: str | Path = ".") -> Catalog:
        """Make an empty catalog.

        Parameters
        ----------
        address
            A folder; or ``http://host:19530``, with a name after a slash if a server is to hold several catalogs.
        dim
            D of the embeddings.
        model
            Identity of the model that embeds, so that vectors of no other get in.
        model_path
            Where this model lies, to embed queries.
        root
            Folder that the images' paths start from.

        Raises
        ------
        InputError
            If there is a catalog already, or something else, or the server does not answer.
        """
        facts = {
            "format_version": FORMAT_VERSION,
            "root": str(Path(root).absolute()),
            "dim": dim,
            "model": model,
            "model_path": model_path,
        }
        if is_server(address):
            return cls._create_on_server(address, facts)
        folder = Path(address)
        theirs = _not_ours(folder)
        if theirs is not None:
            raise InputError(f"{address}: {theirs}; give another folder")
        folder.mkdir(parents=True, exist_ok=True)
        with held(folder) as lock:
            shutil.rmtree(folder / "milvus.db", ignore_errors=True)  # of a start that was killed
            client = open_lite(folder)
            create_collection(client, COLLECTION, dim, "")
            # the last step: without it, there is no catalog
            atomic_write(folder / "catalog.json", json.dumps(facts, indent=2) + "\n")
            return cls._of_folder(client, folder, facts, lock)

    @classmethod
    def _create_on_server(cls, address: str, facts: dict[str, Any]) -> Catalog:
        client, name = connect(address)
        with closed_on_error(client):
            if client.has_collection(name):
                raise InputError(f"{address}: there is a collection {name} already; give another name after the slash")
            create_collection(client, name, facts["dim"], json.dumps(facts))
            return cls(client, name, address, facts)

    @classmethod
    def open(cls, address: str) -> Catalog:
        """Open a catalog.

        Parameters
        ----------
        address
            As in `create`. The token of a server that asks for one is in the environment's ``MILVUS_TOKEN``.

        Raises
        ------
        InputError
            If it is not there, of an unknown version, or open in another process.

        Examples
        --------
        >>> Catalog.open("nowhere")
        Traceback (most recent call last):
        ...
        orthoproxy.core.errors.InputError: nowhere: no catalog; make one with: orthoproxy index nowhere IMAGES --model MODEL
        """
        missing = InputError(f"{address}: no catalog; make one with: orthoproxy index {address} IMAGES --model MODEL")
        if is_server(address):
            client, name = connect(address)
            with closed_on_error(client):
                if not client.has_collection(name):
                    raise missing
                facts = _checked(client.describe_collection(name).get("description", ""), address)
                client.load_collection(name)
                return cls(client, name, address, facts)
        folder = Path(address)
        if not (folder / "catalog.json").is_file():
            raise missing
        facts = _checked(
            (folder / "catalog.json").read_text(encoding="utf-8", errors="replace"), f"{folder / 'catalog.json'}"
        )
        with held(folder) as lock:
            client = open_lite(folder)
            client.load_collection(COLLECTION)
            return cls._of_folder(client, folder, facts, lock)

    @staticmethod
    def exists(address: str) -> bool:
        """Say whether there is a catalog at an address.

        Parameters
        ----------
        address
            As in `create`.

        Raises
        ------
        InputError
            If the server does not answer.

        Examples
        --------
        >>> Catalog.exists("nowhere")
        False
        """
        if not is_server(address):
            return (Path(address) / "catalog.json").is_file()
        client, name = connect(address)
        try:
            return client.has_collection(name)
        finally:
            client.close()

    @classmethod
    def _of_folder(cls, client: Client, folder: Path, facts: dict[str, Any], lock: FileLock) -> Catalog:
        catalog = cls(client, COLLECTION, str(folder), facts)

        def release() -> None:
            close_lite(client, folder)
            lock.release()

        catalog._release = release
        return catalog

    def upsert(self, rows: pd.DataFrame, embeddings: Float[np.ndarray, "N D"]) -> None:
        """Add images, and replace those that are there. On return they are kept, whatever happens to the process.

        Parameters
        ----------
        rows
            Columns ``id, path, label, group, content``; the path relative to the root, the content a hash of the file.
        embeddings
            Unit-length rows, in the same order.

        Raises
        ------
        InputError
            If the embeddings are not of the catalog's width or not of unit length, or a text is too long.
        """
        embeddings = np.ascontiguousarray(embeddings, dtype=np.float32)
        self._check(embeddings)
        if len(rows) != len(embeddings):
            raise InputError(f"embeddings: {len(embeddings)}, but {len(rows)} rows")
        texts = rows[list(TEXTS)].astype(str)
        for field, most in TEXTS.items():
            long = next((text for text in texts[field] if len(text) * 4 > most and len(text.encode()) > most), None)
            if long is not None:
                raise InputError(f"{field}: {long[:60]}... has {len(long.encode())} bytes; at most {most}")
        records = texts.to_dict("records")
        step = max(1, min(2000, 4_000_000 // self.dim))
        for first in range(0, len(records), step):
            part = records[first : first + step]
            vectors = embeddings[first : first + step].tolist()
            data = [{**row, "embedding": vector} for row, vector in zip(part, vectors, strict=True)]
            self._wrote = True
            with self._told():
                self._client.upsert(self._collection, data)

    def delete(self, ids: Sequence[str]) -> int:
        """Take images out.

        Parameters
        ----------
        ids
            Their keys; those that are not there do not matter.

        Returns
        -------
        int
            How many were there.
        """
        there = self.get(ids)["id"].tolist()
        self._wrote = True
        for part in _parts(there, 1000):
            with self._told():
                self._client.delete(self._collection, ids=part)
        return len(there)

    def get(self, ids: Sequence[str], with_embeddings: bool = False) -> pd.DataFrame:
        """Look images up.

        Parameters
        ----------
        ids
            Their keys.
        with_embeddings
            Return the embeddings too.

        Returns
        -------
        pandas.DataFrame
            ``id, path, label, group, content`` and, if wanted, ``embedding``, in the order of the ids; without those
            that are not there.
        """
        columns = [*TEXTS, *(["embedding"] if with_embeddings else [])]
        found = {}
        for part in _parts(list(dict.fromkeys(ids)), 1000):
            listed = ", ".join(map(quote, part))
            for row in self._query(f"id in [{listed}]", columns):
                found[row["id"]] = row
        if with_embeddings:
            found = {key: {**row, "embedding": np.float32(row["embedding"])} for key, row in found.items()}
        return pd.DataFrame([found[key] for key in ids if key in found], columns=columns)

    def ids(self) -> dict[str, str]:
        """Return the key of every image, and the hash of its content."""
        rows = self.rows(["id", "content"])
        return dict(zip(rows["id"], rows["content"], strict=True))

    def rows(self, columns: Sequence[str] = tuple(TEXTS)) -> pd.DataFrame:
        """Return every image's row.

        Parameters
        ----------
        columns
            Of ``id, path, label, group, content``.

        Returns
        -------
        pandas.DataFrame
            Ordered by id.
        """
        found = [row for part in self._pages(list(columns)) for row in part]
        return pd.DataFrame(found, columns=list(columns)).sort_values("id", ignore_index=True)

    def __len__(self) -> int:
        with self._told():
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
            How many to find.
        where
            A condition that they must meet; see `conditions.parse_condition`.
        diverse
            At most one image a group, or a label where there is no group.

        Returns
        -------
        list of list of Hit
            For each query, the most similar first.

        Raises
        ------
        InputError
            If k, the condition or the queries are not right.
        """
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        self._check(queries)
        if not 1 <= k <= MOST:
            raise InputError(f"k: {k}; from 1 to {MOST}")
        condition = str(parse_condition(where)) if where else ""
        if diverse:
            return [self._search_diverse(query[None], k, condition) for query in queries]
        return self._search(queries, k, condition)

    def _search(self, queries: np.ndarray, k: int, condition: str) -> list[list[Hit]]:
        if not len(queries):
            return []
        with self._told():
            found = self._client.search(
                self._collection,
                data=list(queries),
                filter=condition,
                limit=k,
                output_fields=["path", "label", "group"],
                search_params={"metric_type": "IP", "params": {"ef": max(self.ef, k)}},
                consistency_level="Strong" if self._wrote else "Bounded",
            )
        return [[self._hit(hit["id"], hit["entity"], hit["distance"]) for hit in hits] for hits in found]

    def _hit(self, key: str, row: dict[str, str], similarity: float) -> Hit:
        path = str(Path(self.root) / row["path"])
        return Hit(key, path, row["label"], row["group"], float(similarity))

    def _search_diverse(self, query: np.ndarray, k: int, condition: str) -> list[Hit]:
        """Search again without the groups found so far, until there are enough or no more."""
        best: dict[tuple[str, str], Hit] = {}
        limit = min(MOST, 4 * k)
        while True:
            left_out = {field: [value for name, value in best if name == field] for field in ("group", "label", "id")}
            parts = [f"({condition})"] if condition else []
            if left_out["group"]:
                parts.append(f"not (group in {_list(left_out['group'])})")
            if left_out["label"]:
                parts.append(f'not (group == "" and label in {_list(left_out["label"])})')
            if left_out["id"]:
                parts.append(f"not (id in {_list(left_out['id'])})")
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
        rows = self.rows(["id", "label", "group", "content"])
        return {
            "images": len(rows),
            "labels": rows["label"][rows["label"] != ""].nunique(),
            "groups": rows["group"][rows["group"] != ""].nunique(),
            "duplicates": len(rows) - rows["content"].nunique(),
            "dim": self.dim,
            "index": self.index,
            "model": self.model,
            "model_path": self.model_path,
            "root": self.root,
        }

    def flush(self) -> None:
        """Put what was written into its final form, which a server searches exactly and a folder keeps smaller.

        To be called once after much was written; what `upsert` wrote is safe without it.
        """
        with self._told():
            self._client.flush(self._collection)

    @property
    def index(self) -> str:
        """The kind of index: ``FLAT``, which looks at every row, or ``HNSW``."""
        with self._told():
            return str(self._client.describe_index(self._collection, "embedding")["index_type"])

    def set_index(self, kind: str) -> None:
        """Build an index of another kind. Searches wait for it.

        Parameters
        ----------
        kind
            ``FLAT`` or ``HNSW``.
        """
        with self._told():
            self._client.release_collection(self._collection)
            self._client.drop_index(self._collection, "embedding")
            create_index(self._client, self._collection, kind)
            self._client.load_collection(self._collection)

    def vectors(self) -> Iterator[tuple[list[str], Float[np.ndarray, "N D"]]]:
        """Yield all embeddings, some thousand at a time, with their ids."""
        for part in self._pages(["id", "embedding"]):
            if part:
                yield [row["id"] for row in part], np.array([row["embedding"] for row in part], dtype=np.float32)

    def close(self) -> None:
        """Let go of the folder or the connection; to be called once, or more often."""
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
            raise InputError(f"embeddings: shape {embeddings.shape}; {self.address} holds rows of {self.dim}")
        lengths = np.linalg.norm(embeddings, axis=1)
        if not (np.abs(lengths - 1) < UNIT).all():  # also for those that are no numbers
            raise InputError("embeddings: not all rows have unit length; divide each by its length")

    def _query(self, condition: str, columns: list[str]) -> list[dict[str, Any]]:
        with self._told():
            return self._client.query(
                self._collection,
                filter=condition,
                output_fields=columns,
                limit=MOST if is_server(self.address) else 2**31,
                consistency_level="Strong",
            )

    def _pages(self, columns: list[str]) -> Iterator[list[dict[str, Any]]]:
        """All rows, in parts by the first digits of their ids, which are hashes and so spread evenly.

        Milvus Lite goes through all rows for each part, so there the parts are larger.
        """
        size, floats = (8000, 8_000_000) if is_server(self.address) else (100_000, 40_000_000)
        if "embedding" in columns:
            size = max(1, min(size, floats // self.dim))
        count = max(1, -(-len(self) // size))
        bounds = [f"{number * 16**8 // count:08x}" for number in range(count)]
        for first, last in zip(bounds, [*bounds[1:], "g"], strict=True):
            yield self._query(f'id >= "{first}" and id < "{last}"', columns)

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Say in a line what a server refuses."""
        try:
            yield
        except MilvusException as error:
            raise InputError(f"{self.address}: Milvus says: {first_line(error)}") from error


def _not_ours(folder: Path) -> str | None:
    """Why a catalog cannot be made in a folder; what a killed start left is no reason."""
    if folder.exists() and not folder.is_dir():
        return "a file"
    if (folder / "catalog.json").is_file():
        return "holds a catalog already"
    ours = {"milvus.db", "lock", "lock.pid", "catalog.json.tmp"}
    others = {path.name for path in folder.iterdir()} - ours if folder.is_dir() else set()
    return f"holds {min(others)}, but no catalog" if others else None


def _checked(text: str, where: str) -> dict[str, Any]:
    """The facts of a catalog, if they are of a version that this code knows."""
    try:
        facts = parse_json(text)
    except ValueError:
        facts = None
    version = facts.get("format_version") if isinstance(facts, dict) else None
    if not isinstance(facts, dict) or version is None:
        raise InputError(f"{where}: not a catalog of orthoproxy")
    if version != FORMAT_VERSION:
        raise InputError(
            f"{where}: format_version {version!r} is unknown; this orthoproxy reads version {FORMAT_VERSION}. "
            "Update orthoproxy, or index again"
        )
    dim, texts = facts.get("dim"), [facts.get(name) for name in ("model", "model_path", "root")]
    if not isinstance(dim, int) or dim < 1 or not all(isinstance(text, str) for text in texts):
        raise InputError(f"{where}: damaged; index again")
    return facts


def _list(values: Sequence[str]) -> str:
    return f"[{', '.join(map(quote, values))}]"


def _parts(items: Sequence[str], size: int) -> Iterator[list[str]]:
    for first in range(0, len(items), size):
        yield list(items[first : first + size])
