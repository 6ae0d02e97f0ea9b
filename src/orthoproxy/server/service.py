"""What the routes and the page ask for: search in the served catalogs, and their pictures."""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, Unpack, cast

import numpy as np
import pandas as pd
import torch
from cachetools import LRUCache
from jaxtyping import Float

from orthoproxy.catalog.filters import in_quotes, parse_condition
from orthoproxy.core.errors import InputError
from orthoproxy.data.transforms import Resize
from orthoproxy.embedding.embedder import Embedder
from orthoproxy.embedding.onnx_embedder import OnnxEmbedder, load_model
from orthoproxy.server.limits import Limits, Refused, Turns
from orthoproxy.server.query_batching import Batches
from orthoproxy.server.uploads import MEDIA_TYPES, Decoders, required_format

if TYPE_CHECKING:
    from orthoproxy.catalog.catalog import Catalog, Hit

LOG = logging.getLogger("orthoproxy.serve")
MOST_RESULTS = 100
ROWS_LISTED = 200_000  # rows whose labels are counted and offered; of a larger catalog only some are looked at
UPLOADS_KEPT = 1000  # their embeddings, a few kB each
THUMBNAIL_BYTES = 64_000_000  # kept in memory
Model = Embedder | OnnxEmbedder


class How(TypedDict, total=False):
    """What of a search can be left out; see `Service.search`."""

    k: int
    where: str | None
    diverse: bool


@dataclass(frozen=True)
class Result:
    """An image found, as `catalog.Hit` has it, but with its path relative to the catalog's root."""

    id: str
    path: str
    label: str
    group: str
    similarity: float


@dataclass(frozen=True)
class Found:
    """What a search found in a catalog.

    Parameters
    ----------
    catalog
        Its name.
    results
        The most similar first.
    threshold
        The similarity below which the model says "no match"; None if it was not calibrated.
    seconds
        That the search took, with embedding the picture and waiting for searches that came before.
    """

    catalog: str
    results: list[Result]
    threshold: float | None
    seconds: float


@dataclass(frozen=True)
class Shelf:
    """A catalog that is served, under a name, with the model that embeds queries to it, if there is one."""

    name: str
    catalog: Catalog
    model: Model | None
    images: int
    labels: tuple[str, ...]  # the most frequent first
    some: tuple[str, ...]  # ids to begin with


class Service:
    """The served catalogs.

    Parameters
    ----------
    catalogs
        Name to catalog; the first is the default.
    models
        Among which each catalog finds its own by identity. Where it is not among them, the one that the catalog names
        is loaded.
    limits
        Sizes and numbers.

    Raises
    ------
    InputError
        If the model of a catalog is another one by now.
    """

    def __init__(
        self, catalogs: dict[str, Catalog], models: Sequence[Model] = (), limits: Limits | None = None
    ) -> None:
        self.limits = limits or Limits()
        known = {model.identity: model for model in models}
        self.shelves = {name: _shelf(name, catalog, known) for name, catalog in catalogs.items()}
        self.models = known
        self.decoders = Decoders(self.limits)
        self._batches = {name: _batches(shelf.catalog, self.limits) for name, shelf in self.shelves.items()}
        self._embedding = Turns(1, self.limits.waiting, self.limits.wait_seconds)  # a model uses all cores by itself
        self._embedder = ThreadPoolExecutor(1)  # for each thread that calls PyTorch, it keeps memory and threads
        self._uploads = LRUCache[str, dict[str, np.ndarray]](UPLOADS_KEPT)
        self._thumbnails = LRUCache[tuple[str, str, str, int], bytes](THUMBNAIL_BYTES, getsizeof=len)
        self._keeping = threading.Lock()  # of both, which are not made for threads

    def shelf(self, name: str | None) -> Shelf:
        """Return a catalog by name.

        Parameters
        ----------
        name
            None for the first one.

        Raises
        ------
        Refused
            404 if there is none of that name.
        """
        if name is None:
            return next(iter(self.shelves.values()))
        if name not in self.shelves:
            raise Refused(404, f"no catalog of that name; there are {', '.join(self.shelves)}")
        return self.shelves[name]

    def search_picture(self, content: bytes, catalog: str | None, **how: Unpack[How]) -> Found:
        """Search by a picture's file.

        Parameters
        ----------
        content
            The file.
        catalog
            Where to search; None for the first catalog.
        how
            See `search`.

        Raises
        ------
        Refused
            413, 415, 422 for the picture, and as from `search`.
        """
        shelf = self.shelf(catalog)
        if shelf.model is None:
            raise Refused(422, f"{shelf.name} is served without its model; search by id or embedding")
        start = time.perf_counter()
        query = self._embed(content, shelf.model)
        return self.search(query, shelf.name, started=start, **how)

    def search_id(self, key: str, catalog: str | None, own: str | None = None, **how: Unpack[How]) -> Found:
        """Search by an image of a catalog, which is itself left out of what is found.

        Parameters
        ----------
        key
            The image's id.
        catalog
            Where to search; None for the first catalog.
        own
            The catalog that the image is of; None for the one searched. If that has no such image, its file is
            embedded.
        how
            See `search`.

        Raises
        ------
        Refused
            404 if there is no such image, and as from `search`.
        """
        shelf = self.shelf(catalog)
        row = self._row(shelf, key, with_embedding=True)
        if row is not None:
            return self.search(row["embedding"], shelf.name, without=row["path"], **how)
        if own is None or own == shelf.name:
            raise Refused(404, "no image of that id")
        return self.search_picture(self.picture(key, own)[0], shelf.name, **how)

    def search_upload(self, key: str, catalog: str | None, **how: Unpack[How]) -> Found:
        """Search by a picture that was kept with `keep`.

        Parameters
        ----------
        key
            What `keep` returned.
        catalog
            Where to search; None for the first catalog.
        how
            See `search`.

        Raises
        ------
        Refused
            404 if the picture is not kept any more, and as from `search`.
        """
        shelf = self.shelf(catalog)
        with self._keeping:
            kept = self._uploads.get(key)
        if kept is None:
            raise Refused(404, "the picture is not kept any more; choose it again")
        if shelf.model is None:
            raise Refused(422, f"{shelf.name} is served without its model; search by id or embedding")
        return self.search(kept[shelf.catalog.model], shelf.name, **how)

    def keep(self, content: bytes) -> str:
        """Embed a picture with every model, to search by it more than once.

        Parameters
        ----------
        content
            The file.

        Returns
        -------
        str
            A key that nobody can guess, for `search_upload`.

        Raises
        ------
        Refused
            413, 415, 422 for the picture; 503.
        """
        key = secrets.token_urlsafe(16)
        embeddings = {name: self._embed(content, model) for name, model in self.models.items()}
        with self._keeping:
            self._uploads[key] = embeddings
        return key

    def search(
        self,
        query: Float[np.ndarray, " D"],
        catalog: str | None,
        k: int = 10,
        where: str | None = None,
        diverse: bool = False,
        without: str | None = None,
        started: float | None = None,
    ) -> Found:
        """Search by an embedding.

        Parameters
        ----------
        query
            Of any length but zero.
        catalog
            Where to search; None for the first catalog.
        k
            How many to find, at most `MOST_RESULTS`.
        where
            A condition; see `conditions.parse_condition`.
        diverse
            At most one image a group, or a label where there is no group.
        without
            A path to leave out.
        started
            When the work on this query began, as `time.perf_counter` says it.

        Raises
        ------
        Refused
            404, 422 for what was asked, 503 if too many wait.
        """
        shelf = self.shelf(catalog)
        if not 1 <= k <= MOST_RESULTS:
            raise Refused(422, f"k: from 1 to {MOST_RESULTS}")
        query = _unit(query, shelf.catalog.dim)
        condition = _condition(where)
        start = time.perf_counter() if started is None else started
        # for one a group the image itself must not stand for its group; else it is left out afterwards, so that
        # searches by different images have the same condition and go together
        if without is not None and diverse:
            parts = [f"({condition})"] if condition else []
            condition = " and ".join([*parts, f"path != {in_quotes(without)}"])
        with _available():
            hits = self._batches[shelf.name].search(query, k + (without is not None), condition, diverse)
        seconds = time.perf_counter() - start
        root = Path(shelf.catalog.root)
        results = [
            Result(hit.id, _relative(hit.path, root), hit.label, hit.group, min(hit.similarity, 1.0)) for hit in hits
        ]
        results = [result for result in results if result.path != without][:k]
        return Found(shelf.name, results, shelf.model.threshold if shelf.model else None, seconds)

    def row(self, key: str, catalog: str | None) -> dict[str, str]:
        """Return what the catalog says of an image.

        Parameters
        ----------
        key
            Its id.
        catalog
            None for the first one.

        Raises
        ------
        Refused
            404 if there is none.
        """
        row = self._row(self.shelf(catalog), key)
        if row is None:
            raise Refused(404, "no image of that id")
        return row

    def picture(self, key: str, catalog: str | None) -> tuple[bytes, str]:
        """Return an image's file and its media type.

        The file's name comes from the catalog, never from the request. It must lie below the catalog's root, links
        followed, and be a picture of a known format.

        Parameters
        ----------
        key
            The image's id.
        catalog
            None for the first one.

        Raises
        ------
        Refused
            404 if there is no such image or file, 415 if it is of another format, 413 if it is too large.
        """
        row = self.row(key, catalog)
        root = Path(self.shelf(catalog).catalog.root).resolve()
        missing = Refused(404, "the image's file is not there")
        try:
            path = (root / row["path"]).resolve(strict=True)
            if not path.is_relative_to(root) or not path.is_file():
                raise missing
            if path.stat().st_size > self.limits.upload_bytes:
                raise Refused(413, "the image's file is too large to be shown")
            content = path.read_bytes()
        except (OSError, ValueError) as error:
            raise missing from error
        return content, MEDIA_TYPES[required_format(content)]

    def thumbnail(self, key: str, catalog: str | None, side: int) -> bytes:
        """Return a small copy of an image, as WebP.

        Parameters
        ----------
        key
            The image's id.
        catalog
            None for the first one.
        side
            Pixels, at most.

        Raises
        ------
        Refused
            As from `picture`, and 422 if it is broken.
        """
        row = self.row(key, catalog)
        entry = (self.shelf(catalog).name, key, row["content"], side)
        with self._keeping:
            kept = self._thumbnails.get(entry)
        if kept is not None:
            return kept
        made = self.decoders.thumbnail(self.picture(key, catalog)[0], side)
        with self._keeping:
            self._thumbnails[entry] = made
        return made

    def close(self) -> None:
        """End what decodes and embeds, and let the catalogs go."""
        self.decoders.close()
        self._embedder.shutdown()
        for shelf in self.shelves.values():
            shelf.catalog.close()

    def _embed(self, content: bytes, model: Model) -> Float[np.ndarray, " D"]:
        view = self.decoders.view(content, model.image_size, cast(Resize, model.resize))
        with self._embedding.turn():
            return self._embedder.submit(model.embed, torch.from_numpy(view)[None]).result()[0]

    def _row(self, shelf: Shelf, key: str, with_embedding: bool = False) -> dict | None:
        with _available():
            rows = shelf.catalog.get([key], with_embedding)
        return rows.iloc[0].to_dict() if len(rows) else None


@contextmanager
def _available() -> Iterator[None]:
    """What was asked has been checked, so what a catalog refuses now is its own trouble."""
    try:
        yield
    except InputError as error:
        LOG.error("%s", error)
        raise Refused(503, "the catalog does not answer at the moment") from error


def _unit(query: np.ndarray, dim: int) -> Float[np.ndarray, " D"]:
    query = np.asarray(query, dtype=np.float64)
    if query.shape != (dim,):
        raise Refused(422, f"embedding: {query.size} numbers, and this catalog's have {dim}")
    length = np.linalg.norm(query / max(float(np.abs(query).max()), 1e-300)) * float(np.abs(query).max())
    if not np.isfinite(length) or length < 1e-12:
        raise Refused(422, "embedding: its length must be a number above zero")
    return (query / length).astype(np.float32)


def _condition(where: str | None) -> str | None:
    if where is None or not where.strip():
        return None
    try:
        parse_condition(where)
    except InputError as error:
        raise Refused(422, f"filter: {str(error).removeprefix('condition: ')}") from error
    return where


def _relative(path: str, root: Path) -> str:
    return Path(path).relative_to(root).as_posix() if Path(path).is_relative_to(root) else Path(path).name


def _batches(catalog: Catalog, limits: Limits) -> Batches[Hit]:
    """Of a folder one at a time: it is searched in this process, where a second search would only slow the first."""
    at_once = limits.searches if "://" in catalog.address else 1
    return Batches(catalog.search, at_once, limits.waiting, limits.wait_seconds)


def _shelf(name: str, catalog: Catalog, known: dict[str, Model]) -> Shelf:
    model = known.get(catalog.model) or _model_of(name, catalog)
    if model is not None:
        known[model.identity] = model
    images = len(catalog)
    if images > ROWS_LISTED:
        some = next(catalog.vectors(), ([], None))[0]
        rows = catalog.get(some)
    else:
        rows = catalog.rows(["id", "label"])
    return Shelf(name, catalog, model, images, _labels(rows), tuple(rows["id"].sample(frac=1, random_state=0)[:12]))


def _labels(rows: pd.DataFrame) -> tuple[str, ...]:
    counts = rows["label"][rows["label"] != ""].value_counts()
    return tuple(str(label) for label in counts.index)


def _model_of(name: str, catalog: Catalog) -> Model | None:
    try:
        model = load_model(catalog.model_path)
    except InputError as error:
        LOG.warning("%s: its model cannot be loaded, so it is searched by id and embedding only: %s", name, error)
        return None
    if model.identity != catalog.model:
        raise InputError(
            f"{name}: was indexed with model {catalog.model}, and {catalog.model_path} is {model.identity} by now; "
            "index again, or give the former one with --model"
        )
    return model
