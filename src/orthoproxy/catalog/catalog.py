"""A catalog: embeddings of images with their paths and labels, in a folder, an object store or a Milvus server."""

from __future__ import annotations

import hashlib
import heapq
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Float
from pydantic import BaseModel

from orthoproxy.catalog.columns import TEXT_FIELDS
from orthoproxy.catalog.filters import And, Condition, In, Not, both, parse_filter
from orthoproxy.core.boxes import Box, split_box
from orthoproxy.core.errors import InputError
from orthoproxy.embedding.file_formats import UNIT_TOLERANCE, Dim, validate_json
from orthoproxy.embedding.onnx_embedder import AnyEmbedder, load_model

if TYPE_CHECKING:
    from orthoproxy.catalog.lance import LanceStore
    from orthoproxy.catalog.milvus import MilvusStore

MAX_RESULTS = 16_384  # of one search


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
    box
        The image's box in the picture: x, y, width and height in pixels; None for a whole picture.
    """

    id: str
    path: str
    label: str
    group: str
    similarity: float
    box: Box | None = None


def vote_of_hits(hits: Sequence[Hit]) -> tuple[str | None, float]:
    """Return the label that hits vote for and its share, as `evaluation.vote`; None and 0 if none has a label."""
    from orthoproxy.evaluation import vote  # loads scipy

    labeled = [hit for hit in hits if hit.label]
    if not labeled:
        return None, 0.0
    similarity, labels = (np.array([[getattr(hit, name) for hit in labeled]]) for name in ("similarity", "label"))
    (winner,), (share,) = vote(similarity, labels)
    return labeled[winner].label, float(share)


class CatalogMeta(BaseModel, frozen=True):
    """Metadata of a catalog, which its store keeps as JSON."""

    format_version: Literal[2]
    root: str
    dim: Dim
    model: str
    model_path: str


def image_id(relative_path: str) -> str:
    """Return the primary key of an image: 32 hexadecimal digits of the SHA-256 of its path relative to the root."""
    return hashlib.sha256(os.fsencode(relative_path)).hexdigest()[:32]


def embedding_matrix(rows: pd.DataFrame, dim: int) -> Float[np.ndarray, "N D"]:
    """Return the column ``embedding`` of some rows, of which there may be none, as one array."""
    return np.array(rows["embedding"].tolist(), dtype=np.float32).reshape(-1, dim)


def combined_query(similar: Float[np.ndarray, "N D"], unlike: Float[np.ndarray, "M D"]) -> Float[np.ndarray, " D"]:
    """Return mean(similar) - 1/2 mean(unlike) at unit length (Rocchio, 1971); raises InputError if that is zero."""
    query = similar.mean(axis=0) - (unlike.mean(axis=0) / 2 if len(unlike) else 0)
    length = np.linalg.norm(query)
    if length < UNIT_TOLERANCE:
        raise InputError("the images cancel out", field="images", hint="search for each by itself")
    return query / length


def expand(
    catalog: Catalog, queries: Float[np.ndarray, "Q D"], neighbors: int, where: Condition | str | None = None
) -> Float[np.ndarray, "Q D"]:
    """Expand each query by its nearest neighbors in a catalog that meet a filter, as `evaluation.expand_queries`."""
    from orthoproxy.evaluation.query_expansion import add_neighbors  # loads scipy

    expanded = np.empty_like(queries)
    for place, hits in enumerate(catalog.search(queries, neighbors, where)):
        found = catalog.get([hit.id for hit in hits], with_embeddings=True)
        gallery, query = embedding_matrix(found, catalog.dim), queries[[place]]
        expanded[place] = add_neighbors(query, gallery, np.arange(len(gallery))[None], query @ gallery.T)[0]
    return expanded


class Catalog:
    """A collection of embeddings in a folder, an object store (``s3://bucket/birds``) or on a Milvus server.

    Created by `create` or `open`; a context manager that closes it. Any number of processes may read and write a folder
    or an object store, and see each other's writes at once. On a Milvus server, searches see them after some seconds.

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

    def __init__(self, store: LanceStore | MilvusStore) -> None:
        self.store, self.address = store, store.address
        self.meta = validate_json(CatalogMeta, store.meta, store.address, "update orthoproxy, or index again")
        self.dim, self.model = self.meta.dim, self.meta.model
        self.root, self.model_path = self.meta.root, self.meta.model_path

    @classmethod
    def create(cls, address: str, dim: int, model: str, model_path: str, root: str | Path = ".") -> Catalog:
        """Create an empty catalog; raises InputError if the address is in use, or the server does not answer.

        Parameters
        ----------
        address
            Folder, ``s3://...``, ``gs://...`` or ``http://host:19530``, the address of a Milvus server; a name after
            the slash distinguishes the catalogs of a server.
        dim
            Embedding dimension D.
        model, model_path
            Identity of the embedding model, and where it is, to embed queries.
        root
            Folder that image paths are relative to.
        """
        root = str(Path(root).absolute())
        meta = CatalogMeta(format_version=2, root=root, dim=dim, model=model, model_path=model_path)
        return cls(_store_class(address).create(address, dim, meta.model_dump_json()))

    @classmethod
    def open(cls, address: str) -> Catalog:
        """Open a catalog; a server's token is read from ``MILVUS_TOKEN``.

        Raises InputError if it does not exist, is damaged or has an unknown format version.
        """
        store = _store_class(address).open(address)
        if store is None:
            hint = "create it with orthoproxy index"
            old = "://" not in address and (Path(address) / "catalog.json").is_file()
            hint = f"it is of version 0.1: delete the folder, and {hint}" if old else hint
            raise InputError("no catalog", path=address, hint=hint)
        try:
            return cls(store)
        except InputError:
            store.close()
            raise

    @staticmethod
    def exists(address: str) -> bool:
        """Whether there is a catalog at an address."""
        store = _store_class(address).open(address)
        if store is not None:
            store.close()
        return store is not None

    @property
    def versioned_store(self) -> LanceStore:
        """The store, if it keeps earlier versions; raises InputError on a Milvus server, which does not."""
        from orthoproxy.catalog.lance import LanceStore

        if not isinstance(self.store, LanceStore):
            raise InputError("not possible on a Milvus server", path=self.address, hint="create another catalog")
        return self.store

    def upsert(self, rows: pd.DataFrame, embeddings: Float[np.ndarray, "N D"]) -> None:
        """Insert images, replacing those with the same id; durable on return.

        The columns of `rows` are ``id, path, label, group, content``: the path is relative to the root, the id is its
        `image_id`, the content a hash of the file and the box. The rows of `embeddings`, in the same order, have unit
        length.
        """
        embeddings = np.ascontiguousarray(embeddings, dtype=np.float32)
        self._check(embeddings, "embeddings")
        if len(rows) != len(embeddings):
            raise InputError(f"{len(embeddings)} rows", field="embeddings", expected=f"{len(rows)}, one per image")
        texts = rows[list(TEXT_FIELDS)].fillna("").astype(str)
        for field, limit in TEXT_FIELDS.items():
            long = next((text for text in texts[field] if len(text) * 4 > limit and len(text.encode()) > limit), None)
            if long is not None:
                problem = f"{long[:60]}... has {len(long.encode())} bytes"
                raise InputError(problem, field=field, expected=f"at most {limit}")
        last = ~texts["id"].duplicated(keep="last").to_numpy()
        if len(texts):
            self.store.upsert(texts[last], embeddings[last])

    def move(self, root: Path | None = None, model_path: str | None = None) -> None:
        """Store where the images or the model are now.

        Raises InputError on a Milvus server, or if none of 100 images is below the new root.
        """
        store = self.versioned_store
        sample = self.get(self.sample_ids(100))["path"]
        if root is not None and len(sample) and not any((root / split_box(path)[0]).exists() for path in sample):
            raise InputError(f"images such as {sample[0]} are not below it", field="root", path=root)
        moved = {"root": root and str(root.absolute()), "model_path": model_path}
        meta = self.meta.model_copy(update={name: value for name, value in moved.items() if value})
        store.set_meta(meta.model_dump_json())
        self.meta, self.root, self.model_path = meta, meta.root, meta.model_path

    def delete(self, ids: Sequence[str]) -> int:
        """Delete images by id and return how many existed."""
        return self.store.delete(list(dict.fromkeys(ids)))

    def get(self, ids: Sequence[str], with_embeddings: bool = False) -> pd.DataFrame:
        """Return ``id, path, label, group, content`` and, on request, ``embedding``, in the order of the ids.

        Ids that do not exist are skipped.
        """
        columns = [*TEXT_FIELDS, *(["embedding"] if with_embeddings else [])]
        found = self.store.get(list(dict.fromkeys(ids)), columns).set_index("id", drop=False)
        return found.loc[[key for key in ids if key in found.index]].reset_index(drop=True)

    def iterate_rows(self, columns: Sequence[str] = tuple(TEXT_FIELDS)) -> Iterator[pd.DataFrame]:
        """Yield these columns of all images, page by page."""
        return self.store.pages(columns)

    def sample_ids(self, count: int) -> list[str]:
        """Return the ids of up to `count` images; as ids are hashes of paths, this is a random sample."""
        return heapq.nsmallest(count, chain.from_iterable(page["id"] for page in self.iterate_rows(["id"])))

    def __len__(self) -> int:
        return self.store.count()

    def search(
        self,
        queries: Float[np.ndarray, "Q D"],
        k: int = 10,
        where: Condition | str | None = None,
        diverse: bool = False,
    ) -> list[list[Hit]]:
        """Find the k images most similar to each query, the most similar first.

        Parameters
        ----------
        queries
            Unit-length rows.
        k
            Number of results per query.
        where
            Filter on the results; text as `filters.parse_filter` reads it, or what that returns.
        diverse
            At most one image per group, or per label for images without a group.
        """
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        self._check(queries, "queries")
        if not 1 <= k <= MAX_RESULTS:
            raise InputError(str(k), field="k", expected=f"1 to {MAX_RESULTS}")
        condition = parse_filter(where) if isinstance(where, str) else where
        if diverse:
            return [self._search_diverse(query[None], k, condition) for query in queries]
        return self._search(queries, k, condition)

    def _search(self, queries: np.ndarray, k: int, condition: Condition | None) -> list[list[Hit]]:
        found = self.store.search(queries, k, condition) if len(queries) else []
        return [[self._hit(row) for row in rows] for rows in found]

    def _hit(self, row: dict) -> Hit:
        path, box = split_box(Path(self.root) / row["path"])
        return Hit(row["id"], path, row["label"], row["group"], float(row["similarity"]), box)

    def _search_diverse(self, query: np.ndarray, k: int, condition: Condition | None) -> list[Hit]:
        """Search repeatedly, each time without the groups found so far, until there are k results or no more rows."""
        best: dict[tuple[str, str], Hit] = {}
        limit = min(MAX_RESULTS, 4 * k)
        while True:
            found = {field: tuple(value for name, value in best if name == field) for field in ("group", "label", "id")}
            excluded = [Not(In(name, found[name])) for name in ("group", "id") if found[name]]
            if found["label"]:
                excluded.append(Not(And((In("group", ("",)), In("label", found["label"])))))
            hits = self._search(query, limit, both(condition, And(tuple(excluded)) if excluded else None))[0]
            for hit in hits:
                field = next(name for name in ("group", "label", "id") if getattr(hit, name))
                best.setdefault((field, getattr(hit, field)), hit)
            if len(best) >= k or len(hits) < limit:
                return sorted(best.values(), key=lambda hit: -hit.similarity)[:k]

    def info(self) -> dict[str, Any]:
        """Return attributes and counts; `duplicates` are images whose file and box equal another's."""
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
            "index": self.store.index_type,
            **{name: getattr(self, name) for name in ("dim", "model", "model_path", "root")},
        }

    def close(self) -> None:
        """Release what is open; may be called more than once."""
        self.store.close()

    def __enter__(self) -> Catalog:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _check(self, embeddings: np.ndarray, field: str) -> None:
        if embeddings.ndim != 2 or embeddings.shape[1] != self.dim:
            expected = f"rows of {self.dim}, the dimension of the catalog"
            raise InputError(f"shape {embeddings.shape}", field=field, expected=expected)
        if not (np.abs(np.linalg.norm(embeddings, axis=1) - 1) < UNIT_TOLERANCE).all():  # nor NaN
            raise InputError("not all rows have unit length", field=field, hint="divide each by its length")


def require_model(catalog: Catalog, identity: str, field: str) -> None:
    """Raise InputError unless this is the model that the catalog was created with."""
    if identity != catalog.model:
        problem = f"model {identity}, but {catalog.address} was created with {catalog.model} ({catalog.model_path})"
        raise InputError(problem, field=field, hint="use that model, or create another catalog")


def load_catalog_model(catalog: Catalog, device: str = "cpu", place: str | None = None) -> AnyEmbedder:
    """Load the model of a catalog, from `place` instead of where it is stored if given."""
    try:
        model = load_model(place or catalog.model_path, device, catalog.model)
    except InputError as error:
        if place is not None or Path(catalog.model_path).exists():
            raise
        raise replace(error, hint="if the model was moved, name its new place") from error
    require_model(catalog, model.identity, "model")
    return model


def _store_class(address: str) -> type[LanceStore | MilvusStore]:
    """Return the class of an address's store; its library is imported only where it is used."""
    if re.match(r"https?://", address):
        from orthoproxy.catalog.milvus import MilvusStore

        return MilvusStore
    from orthoproxy.catalog.lance import LanceStore

    return LanceStore
