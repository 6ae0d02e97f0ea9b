"""Bring a catalog up to date with images on disk, or with embeddings made before; take images out; choose its index."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from orthoproxy.catalog.catalog import FLAT_BELOW, Catalog, image_id
from orthoproxy.core.errors import InputError
from orthoproxy.core.progress import Progress
from orthoproxy.data import Collection
from orthoproxy.embedding.collections import content_of, embed_files
from orthoproxy.embedding.embedder import Embedder
from orthoproxy.embedding.onnx_embedder import OnnxEmbedder
from orthoproxy.embedding.parquet_store import embedding_meta, read_parts

AT_ONCE = 2000  # rows written together, and told about together
KNOWN = ["content", "label", "group"]
COLUMNS = ["id", "path", *KNOWN]


@dataclass
class Changes:
    """What became of the images: how many were `added`, `replaced` or `unchanged`, and which are `unreadable`."""

    added: int = 0
    replaced: int = 0
    unchanged: int = 0
    ids: list[str] = field(default_factory=list)  # of all images that are there, the unreadable ones too
    unreadable: list[tuple[str, str]] = field(default_factory=list)  # path and reason


Told = Callable[[int, int], None]


def index_images(
    catalog: Catalog,
    collection: Collection,
    embedder: Embedder | OnnxEmbedder,
    batch_size: int = 128,
    workers: int = 0,
    told: Told = lambda done, total: None,
) -> Changes:
    """Embed the images that are new or have changed, and put them into a catalog.

    An image whose file is as it was is left alone; if only its label or group is another, its embedding is kept.

    Parameters
    ----------
    catalog
        Open.
    collection
        From `data.read_collection`.
    embedder
        The catalog's own model.
    batch_size
        Images that go through the model at once.
    workers
        Processes that read images, besides this one.
    told
        Called with the number of rows kept so far and of all that are to be written, each time some more are safe.

    Returns
    -------
    Changes
        What became of the images.

    Raises
    ------
    InputError
        If the model is another than the catalog's, or an image lies outside of the catalog's root.
    """
    require_model(catalog, embedder.identity, "--model")
    changes = Changes()
    rows = _rows(collection.images, collection.root, catalog)
    found = _contents(rows["file"].tolist())
    for key, file, content in zip(rows["id"], rows["file"], found, strict=True):
        if not isinstance(content, FileNotFoundError):
            changes.ids.append(key)
        if isinstance(content, OSError):
            changes.unreadable.append((file, content.strerror or str(content)))
    rows["content"] = ["" if isinstance(content, OSError) else content for content in found]
    rows = rows[rows["content"] != ""].reset_index(drop=True)
    before = _before(catalog, rows)
    new = before["content"].isna().to_numpy()
    other = before["content"].to_numpy() != rows["content"].to_numpy()
    renamed = ~other & (before[["label", "group"]].to_numpy() != rows[["label", "group"]].to_numpy()).any(axis=1)
    changes.unchanged = int((~other & ~renamed).sum())
    done, total = 0, int(other.sum() + renamed.sum())

    def embed(files: list[str]) -> tuple[np.ndarray, list[str], list[str]]:
        return embed_files(embedder, files, batch_size, workers)

    with Progress("index", total) as progress:
        steps = (
            _rename(catalog, _parts(rows[renamed], AT_ONCE), changes),
            _embed(catalog, _parts(rows[other], 4 * batch_size), embed, new, changes),
        )
        for images, written in chain(*steps):
            done += written
            progress.advance(images, "images")
            told(done, total)
    return changes


def _rename(catalog: Catalog, parts: Iterable[pd.DataFrame], changes: Changes) -> Iterator[tuple[int, int]]:
    """Write rows with the embeddings that they have; yields the number of images gone through, and of rows written."""
    for part in parts:
        kept = catalog.get(part["id"].tolist(), with_embeddings=True)
        catalog.upsert(part[COLUMNS], np.stack(kept["embedding"].tolist()))
        changes.replaced += len(part)
        yield len(part), len(part)


def _embed(
    catalog: Catalog,
    parts: Iterable[pd.DataFrame],
    embed: Callable[[list[str]], tuple[np.ndarray, list[str], list[str]]],
    new: Bool[np.ndarray, " N"],
    changes: Changes,
) -> Iterator[tuple[int, int]]:
    """Write rows with new embeddings, but for the unreadable; yields as `_rename`."""
    for part in parts:
        embeddings, contents, reasons = embed(part["file"].tolist())
        read = np.array([not reason for reason in reasons])
        pairs = zip(part["file"], reasons, strict=True)
        changes.unreadable += [(file, reason) for file, reason in pairs if reason]
        embedded = part.assign(content=contents)[read]
        catalog.upsert(embedded[COLUMNS], embeddings)
        changes.added += int(new[embedded.index].sum())
        changes.replaced += int((~new[embedded.index]).sum())
        yield len(part), len(embedded)


def index_embeddings(catalog: Catalog, folder: Path, told: Told = lambda done, total: None) -> Changes:
    """Put embeddings that ``orthoproxy embed`` wrote into a catalog; those that are there already are left alone.

    Parameters
    ----------
    catalog
        Open, of the same model.
    folder
        Of the Parquet parts.
    told
        As in `index_images`.

    Returns
    -------
    Changes
        What became of the images.

    Raises
    ------
    InputError
        If the embeddings are another model's, or of images outside of the catalog's root.
    """
    about = embedding_meta(folder)
    require_model(catalog, about["model"], str(folder))
    changes, done, total = Changes(), 0, about["images"]
    with Progress("index", total) as progress:
        for table, embeddings in read_parts(folder):
            rows = _rows(table, Path(about["root"]), catalog)
            before = _before(catalog, rows)
            changed = (before[KNOWN].to_numpy() != rows[KNOWN].to_numpy()).any(axis=1)
            known = changed & before["content"].notna().to_numpy()
            changes.ids += rows["id"].tolist()
            changes.unchanged += int((~changed).sum())
            changes.replaced += int(known.sum())
            changes.added += int((changed & ~known).sum())
            done += int((~changed).sum())
            if not changed.all():
                progress.advance(int((~changed).sum()), "images")
            for part in _parts(rows[changed], AT_ONCE):
                catalog.upsert(part[COLUMNS], embeddings[part.index.to_numpy()])
                done += len(part)
                progress.advance(len(part), "images")
                told(done, total)
    return changes


def prune(catalog: Catalog, ids: Sequence[str]) -> int:
    """Take out all images but those given.

    Parameters
    ----------
    catalog
        Open.
    ids
        Keys of the images that stay.

    Returns
    -------
    int
        How many were taken out.
    """
    return catalog.delete(sorted(set(catalog.ids()) - set(ids)))


def delete_paths(catalog: Catalog, paths: Sequence[str]) -> int:
    """Take images out by path.

    Parameters
    ----------
    catalog
        Open.
    paths
        Of images, or of folders, whose images are all meant; relative to the catalog's root, or absolute. The files
        need not be there any more.

    Returns
    -------
    int
        How many were taken out.

    Raises
    ------
    InputError
        If the catalog has none of the images meant by a path; then none is taken out.
    """
    rows = catalog.rows(["id", "path"])
    chosen: list[str] = []
    for path in paths:
        relative = _relative(Path(catalog.root) / path, Path(catalog.root))
        meant = rows["id"][(rows["path"] == relative) | rows["path"].str.startswith(f"{relative}/")]
        if meant.empty:
            raise InputError(f"--delete: {path} is not in {catalog.address}; give paths relative to {catalog.root}")
        chosen += meant.tolist()
    return catalog.delete(list(dict.fromkeys(chosen)))


def require_model(catalog: Catalog, identity: str, name: str) -> None:
    """Make sure that embeddings are of the catalog's model, or their similarities would mean nothing.

    Parameters
    ----------
    catalog
        Open.
    identity
        Of the model.
    name
        What it is called, for the error.

    Raises
    ------
    InputError
        If it is another model.
    """
    if identity != catalog.model:
        raise InputError(
            f"{name}: of model {identity}, but {catalog.address} was made with {catalog.model} ({catalog.model_path}); "
            "use that one, or make another catalog"
        )


def fit_index(catalog: Catalog, flat_below: int = FLAT_BELOW) -> float | None:
    """Finish a catalog after much was written, with the index that its size asks for: exact for few, HNSW for many.

    Parameters
    ----------
    catalog
        Open.
    flat_below
        With fewer images, the search is exact.

    Returns
    -------
    float or None
        Where an HNSW was built: its recall@10, see `index_recall`.
    """
    catalog.flush()
    wanted = "FLAT" if len(catalog) < flat_below else "HNSW"
    if catalog.index == wanted:
        return None
    catalog.set_index(wanted)
    return index_recall(catalog) if wanted == "HNSW" else None


def index_recall(catalog: Catalog, queries: Float[np.ndarray, "Q D"] | None = None, k: int = 10) -> float:
    """Compare what a search finds with the exact answer.

    Parameters
    ----------
    catalog
        Open.
    queries
        Unit-length rows to search by; None for some of the catalog's own images.
    k
        Neighbours asked for.

    Returns
    -------
    float
        The share of the k nearest that are found, 0 to 1; one as near as the k-th counts too.
    """
    asked = _some_embeddings(catalog) if queries is None else queries
    best = np.full((len(asked), k), -np.inf, dtype=np.float32)
    with Progress("recall of the index", len(catalog)) as progress:
        for ids, embeddings in catalog.vectors():
            best = -np.sort(-np.hstack([best, asked @ embeddings.T]), axis=1)[:, :k]
            progress.advance(len(ids))
    found = catalog.search(asked, k)
    close = best[:, -1] - 1e-5
    hits = [sum(hit.similarity >= bound for hit in row) for row, bound in zip(found, close, strict=True)]
    return sum(hits) / min(k, len(catalog)) / len(asked)


def _some_embeddings(catalog: Catalog, count: int = 100) -> Float[np.ndarray, "Q D"]:
    """Those of the first images by id: as ids are hashes, a random choice."""
    chosen = np.empty((0, catalog.dim), dtype=np.float32)
    for _, embeddings in catalog.vectors():
        chosen = np.concatenate([chosen, embeddings])[:count]
        if len(chosen) == count:
            break
    return chosen


def _rows(images: pd.DataFrame, root: Path, catalog: Catalog) -> pd.DataFrame:
    """The images with their keys, their paths from the catalog's root on, and their files."""
    files = [str(root / path) for path in images["path"]]
    paths = [_relative(Path(file), Path(catalog.root)) for file in files]
    rows = images.reset_index(drop=True).assign(path=paths, file=files)
    rows.insert(0, "id", [image_id(path) for path in paths])
    return rows


def _relative(file: Path, root: Path) -> str:
    """The path below the root; links in it are not followed, so that it stays what the user sees."""
    path = os.path.relpath(os.path.abspath(file), root).replace(os.sep, "/")  # noqa: PTH100
    if path == ".." or path.startswith("../"):
        raise InputError(f"{file} lies outside of the catalog's root {root}; make the catalog with a --root above both")
    return path


def _contents(files: Sequence[str]) -> list[str | OSError]:
    """Hash what the files hold; or say why they cannot be read."""

    def content(file: str) -> str | OSError:
        try:
            return content_of(file)
        except OSError as error:
            return error

    contents = []
    with ThreadPoolExecutor() as pool, Progress("compare files", len(files)) as progress:
        for found in pool.map(content, files):
            contents.append(found)
            progress.advance(unit="files")
    return contents


def _before(catalog: Catalog, rows: pd.DataFrame) -> pd.DataFrame:
    """What the catalog holds of the same images, row by row; nothing where it has none."""
    known = catalog.get(rows["id"].tolist())
    return known.set_index("id").reindex(rows["id"])[KNOWN].reset_index(drop=True)


def _parts(rows: pd.DataFrame, size: int) -> Iterator[pd.DataFrame]:
    for first in range(0, len(rows), size):
        yield rows.iloc[first : first + size]
