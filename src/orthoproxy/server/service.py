"""Search in the served catalogs, by image, id, upload or embedding, and read their images."""

from __future__ import annotations

import logging
import os
import secrets
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote as quote_url

import numpy as np
import torch
from cachetools import LRUCache
from jaxtyping import Float

from orthoproxy.catalog.catalog import Catalog, Hit, require_model, vote_of_hits
from orthoproxy.catalog.filters import Condition, In, Not, both, parse_filter
from orthoproxy.core.boxes import Box, split_box
from orthoproxy.core.errors import InputError
from orthoproxy.embedding.augmentation import AUGMENTED, augmented
from orthoproxy.embedding.onnx_embedder import AnyEmbedder, load_model
from orthoproxy.server.limits import Limits, RequestError
from orthoproxy.server.schemas import CatalogInfo, SearchOptions, SearchResult, SearchResults
from orthoproxy.server.uploads import MEDIA_TYPES, DecoderPool, Source, image_format

LOG = logging.getLogger("orthoproxy.server")
SAMPLES = 12  # images that the page starts with
UPLOADS_KEPT = 1000  # their embeddings, a few kB each
DEFAULTS = SearchOptions()


@dataclass(frozen=True)
class ServedCatalog:
    """A catalog under the name it is served by, with the model that embeds queries, if the server has it."""

    info: CatalogInfo
    catalog: Catalog
    model: AnyEmbedder | None
    labels: tuple[str, ...]  # the most frequent first
    samples: tuple[str, ...]  # ids


class Service:
    """Search in catalogs by name, the first by default, and read their images; the HTTP API and the page call it."""

    def __init__(
        self, catalogs: Mapping[str, Catalog], models: Sequence[AnyEmbedder] = (), limits: Limits | None = None
    ) -> None:
        self.limits = limits or Limits()
        self.models = {model.identity: model for model in models}
        self.catalogs = {name: self._serve(name, catalog) for name, catalog in catalogs.items()}
        self.decoders = DecoderPool(self.limits)
        self._embedding_thread = ThreadPoolExecutor(1)  # PyTorch keeps memory for each thread that calls it
        self._uploads = LRUCache[str, dict[str, np.ndarray]](UPLOADS_KEPT)
        self._lock = threading.Lock()  # of the uploads

    def _serve(self, name: str, catalog: Catalog) -> ServedCatalog:
        model, plain = self.models.get(catalog.model), self.models.get(catalog.model.removesuffix(AUGMENTED))
        if model is None:
            model = _load_model(catalog) if plain is None else augmented(plain)
        if model is not None:
            self.models[model.identity] = model
        counts = Counter(label for page in catalog.iterate_rows(["label"]) for label in page["label"])
        labels = tuple(label for label, _ in counts.most_common() if label)
        described = {"labels": len(labels), "dim": catalog.dim, "model": catalog.model}
        info = CatalogInfo(name=name, images=counts.total(), **described, takes_images=model is not None)
        return ServedCatalog(info, catalog, model, labels, tuple(catalog.sample_ids(SAMPLES)))

    def served(self, name: str | None) -> ServedCatalog:
        """Return a catalog by name, the first for None; raise status 404 if there is none."""
        if name is None:
            return next(iter(self.catalogs.values()))
        if name not in self.catalogs:
            expected = ", ".join(self.catalogs)
            raise RequestError("no catalog of this name", status=404, field="catalog", expected=expected)
        return self.catalogs[name]

    def search_image(self, content: bytes, options: SearchOptions = DEFAULTS) -> SearchResults:
        """Search by an image file; raise status 413, 415 or 422 for one that is too large or broken."""
        started = time.perf_counter()
        served = self.served(options.catalog)
        return self._search(served, self._embed(content, _require_model(served), options.box), options, started)

    def search_id(self, image_id: str, options: SearchOptions = DEFAULTS, source: str | None = None) -> SearchResults:
        """Search by an image, which is left out; a part, or what only the catalog `source` has, is embedded."""
        started = time.perf_counter()
        served = self.served(options.catalog)
        try:
            query = self._row(served, image_id, with_embedding=True)["embedding"]
        except RequestError as error:
            if error.status != 404 or source is None or source == served.info.name:
                raise
            query = None
        if query is None or options.box:
            path, box = self._find_image(image_id, source or served.info.name)
            query = self._embed(path, _require_model(served), options.box or box)
        return self._search(served, query, options, started, excluded=image_id)

    def search_upload(self, upload: str, options: SearchOptions = DEFAULTS) -> SearchResults:
        """Search by an image that was uploaded with `keep_upload`; raise status 404 if it is no longer kept."""
        started = time.perf_counter()
        served = self.served(options.catalog)
        model = _require_model(served)
        with self._lock:
            embeddings = self._uploads.get(upload)
        if embeddings is None:
            raise RequestError("the image is no longer kept", status=404, field="upload", hint="choose it again")
        return self._search(served, embeddings[model.identity], options, started)

    def search_embedding(self, embedding: Sequence[float], options: SearchOptions = DEFAULTS) -> SearchResults:
        """Search by an embedding of any length but zero."""
        started = time.perf_counter()
        served = self.served(options.catalog)
        query = np.asarray(embedding, dtype=np.float64)
        if query.shape != (served.catalog.dim,):
            raise RequestError(f"{query.size} numbers", field="embedding", expected=f"{served.catalog.dim}")
        largest = np.abs(query).max()
        if not 1e-12 <= largest < np.inf:  # false for NaN too
            raise RequestError("no direction", field="embedding", expected="a finite length above zero")
        return self._search(served, query / largest, options, started)

    def keep_upload(self, content: bytes, box: Box | None = None) -> str:
        """Embed an image or a part of it with every model, and return the key for `search_upload`."""
        embeddings = {identity: self._embed(content, model, box) for identity, model in self.models.items()}
        key = secrets.token_urlsafe(16)
        with self._lock:
            self._uploads[key] = embeddings
        return key

    def image(self, image_id: str, catalog: str | None = None, side: int | None = None) -> tuple[Path | bytes, str]:
        """Return a file and its media type; the content as JPEG if browsers need it, as WebP with a `side`."""
        path, box = self._find_image(image_id, catalog)
        if side is not None:
            return self.decoders.thumbnail(path, side, box), "image/webp"
        with path.open("rb") as file:
            start = file.read(16)
        try:
            return path, MEDIA_TYPES[image_format(start)]
        except RequestError:
            return self.decoders.jpeg(path), "image/jpeg"

    def _find_image(self, image_id: str, catalog: str | None) -> tuple[Path, Box | None]:
        """Return the file of an image, which lies below the catalog's root, links followed, and its box."""
        served = self.served(catalog)
        file, box = split_box(self._row(served, image_id)["path"])
        root = Path(served.catalog.root).resolve()
        with suppress(OSError, ValueError):  # a loop of links, or a null byte
            path = (root / file).resolve(strict=True)
            if path.is_relative_to(root) and path.is_file() and os.access(path, os.R_OK):
                return path, box
        raise RequestError("the image's file is missing", status=404, field="id")

    def close(self) -> None:
        """End the worker processes and close the catalogs."""
        self.decoders.close()
        self._embedding_thread.shutdown()
        for served in self.catalogs.values():
            served.catalog.close()

    def _embed(self, source: Source, model: AnyEmbedder, box: Box | None) -> Float[np.ndarray, " D"]:
        pixels = self.decoders.model_input(source, model.image_size, model.resize, box)
        return self._embedding_thread.submit(model.embed, torch.from_numpy(pixels)[None]).result()[0]

    def _search(
        self, served: ServedCatalog, query: np.ndarray, options: SearchOptions, started: float, excluded: str = ""
    ) -> SearchResults:
        condition = _parse_filter(options.filter)
        if options.labels:
            condition = both(condition, In("label", tuple(options.labels)))
        if excluded and options.diverse:  # whose group may have others
            condition = both(condition, Not(In("id", (excluded,))))
        unit = (query / np.linalg.norm(query)).astype(np.float32)
        with _catalog_errors():
            found = served.catalog.search(unit[None], options.k + bool(excluded), condition, options.diverse)[0]
        hits = [hit for hit in found if hit.id != excluded][: options.k]
        threshold = served.model.threshold if served.model else None
        matches = [hit for hit in hits if threshold is None or hit.similarity >= threshold]
        return SearchResults(
            catalog=served.info.name,
            results=[_result(served, rank, hit) for rank, hit in enumerate(hits, 1)],
            threshold=threshold,
            matches=len(matches),
            label=vote_of_hits(matches)[0],
            seconds=round(time.perf_counter() - started, 6),
        )

    def _row(self, served: ServedCatalog, image_id: str, with_embedding: bool = False) -> dict:
        with _catalog_errors():
            rows = served.catalog.get([image_id], with_embedding)
        if rows.empty:
            raise RequestError("no image of this id", status=404, field="id")
        return rows.iloc[0].to_dict()


def _load_model(catalog: Catalog) -> AnyEmbedder | None:
    try:
        model = load_model(catalog.model_path, identity=catalog.model)
    except InputError as error:
        LOG.warning("search by image is off, since the model cannot be loaded: %s", error)
        return None
    require_model(catalog, model.identity, "models")
    return model


def _require_model(served: ServedCatalog) -> AnyEmbedder:
    if served.model is None:
        problem = f"{served.info.name} is served without its model"
        raise RequestError(problem, field="image", hint="search by id or embedding")
    return served.model


def _parse_filter(text: str | None) -> Condition | None:
    if text is None or not text.strip():
        return None
    try:
        return parse_filter(text)
    except InputError as error:
        raise RequestError(error.problem, field="filter", expected=error.expected, hint=error.hint) from error


@contextmanager
def _catalog_errors() -> Iterator[None]:
    """Turn an error of a catalog that does not blame an argument, such as a lost connection, into status 503."""
    try:
        yield
    except InputError as error:
        if error.field is not None:
            raise
        LOG.error("%s", error)
        raise RequestError("the catalog is unavailable", status=503, hint=error.hint or "try again later") from error


def _result(served: ServedCatalog, rank: int, hit: Hit) -> SearchResult:
    path, root = Path(hit.path), Path(served.catalog.root)
    return SearchResult(
        rank=rank,
        id=hit.id,
        similarity=min(hit.similarity, 1.0),
        label=hit.label,
        group=hit.group,
        path=path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name,
        image=f"/images/{hit.id}?catalog={quote_url(served.info.name, safe='')}",
        box=hit.box and hit.box.text,
    )
