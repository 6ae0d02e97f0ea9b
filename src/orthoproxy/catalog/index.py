"""Update a catalog from images on disk or from stored embeddings; delete images; choose the index."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from orthoproxy.catalog.catalog import Catalog, embedding_matrix, image_id, require_model
from orthoproxy.core.boxes import split_box
from orthoproxy.core.errors import InputError
from orthoproxy.core.progress import Progress
from orthoproxy.data.sources.collection import Collection
from orthoproxy.embedding.batches import EmbeddedFiles, File
from orthoproxy.embedding.onnx_embedder import AnyEmbedder
from orthoproxy.embedding.parquet_store import embedding_meta, read_parts, unreadable_images

VALUES = ["content", "label", "group"]
RESTORE = "restore the files, or delete these images from the catalog"
Report = Callable[[int, int], None]


@dataclass
class Changes:
    """Numbers of images added, replaced, relabeled (other label or group), unchanged; the unreadable, with reasons."""

    added: int = 0
    replaced: int = 0
    relabeled: int = 0
    unchanged: int = 0
    ids: list[str] = field(default_factory=list)  # to keep in prune, without those whose file is known to be missing
    unreadable: list[tuple[str, str]] = field(default_factory=list)  # path, reason


def index_images(
    catalog: Catalog,
    collection: Collection,
    embedder: AnyEmbedder,
    batch_size: int = 128,
    workers: int = 0,
    report: Report = lambda done, total: None,
) -> Changes:
    """Insert a collection into a catalog, embedding only images that are new or whose file has changed.

    Each file is read once. If only the label or group of an image has changed, its embedding is kept. No image may lie
    outside the catalog's root, and `embedder` must be the catalog's own model. `report` is called with the numbers of
    images done and in total, each time more of them are durable.
    """
    from orthoproxy.embedding.collections import embed_files  # imports PyTorch, which stored embeddings do without

    require_model(catalog, embedder.identity, "model")
    changes, size = Changes(), 4 * batch_size
    rows = _rows(collection.images, collection.root, Path(catalog.root))
    pending: deque[tuple[pd.DataFrame, pd.DataFrame]] = deque()

    def parts() -> Iterator[list[File]]:
        for first in range(0, len(rows), size):
            part = rows.iloc[first : first + size]
            stored = _stored(catalog, part)
            pending.append((part, stored))
            yield [File(*pair) for pair in zip(part["file"], stored["content"], strict=True)]

    with Progress("index", len(rows)) as progress:
        for files in embed_files(embedder, parts(), batch_size, workers, progress):
            _update(catalog, *pending.popleft(), files, changes)
            report(progress.done, len(rows))
    return changes


def _update(catalog: Catalog, part: pd.DataFrame, stored: pd.DataFrame, files: EmbeddedFiles, changes: Changes) -> None:
    """Write what has changed of some images, the rows of `part` and `stored`; an empty label or group is kept."""
    kept = {name: np.where(part[name] != "", part[name], stored[name].fillna("")) for name in ("label", "group")}
    part = part.assign(content=files.contents, **kept)
    readable = np.array([not reason for reason in files.reasons])
    new = readable & stored["content"].isna().to_numpy()
    changed = readable & (stored["content"].to_numpy() != part["content"].to_numpy())
    relabeled = (stored[["label", "group"]].to_numpy() != part[["label", "group"]].to_numpy()).any(axis=1)
    relabeled &= readable & ~changed
    if relabeled.any():
        rows = catalog.get(part["id"].to_numpy()[relabeled].tolist(), with_embeddings=True)
        rows[["label", "group"]] = part.set_index("id").loc[rows["id"], ["label", "group"]].to_numpy()
        catalog.upsert(rows, embedding_matrix(rows, catalog.dim))
    catalog.upsert(part[changed], files.embeddings)
    changes.added += int(new.sum())
    changes.replaced += int((changed & ~new).sum())
    changes.relabeled += int(relabeled.sum())
    changes.unchanged += int((readable & ~changed & ~relabeled).sum())
    for key, file, reason in zip(part["id"], part["file"], files.reasons, strict=True):
        if reason:
            changes.unreadable.append((file, reason))
        if not reason or not _is_missing(split_box(file)[0]):  # for prune
            changes.ids.append(key)


def _is_missing(file: str) -> bool:
    """Whether a file does not exist, rather than cannot be read now."""
    try:
        Path(file).stat()
    except OSError as error:
        return isinstance(error, FileNotFoundError | NotADirectoryError)
    return False


def index_embeddings(catalog: Catalog, folder: Path, report: Report = lambda done, total: None) -> Changes:
    """Insert the embeddings that `embed_collection` wrote; of unchanged images only a new label or group is written.

    `report` is called as by `index_images`. Raises InputError if the embeddings were computed by another model than the
    catalog's, or a file is damaged.
    """
    meta = embedding_meta(folder)
    require_model(catalog, meta.model, "folder")
    changes = Changes()
    with Progress("index", meta.images) as progress:
        for table, embeddings in read_parts(folder):
            rows = _rows(table, Path(meta.root), Path(catalog.root))
            last = ~rows["id"].duplicated(keep="last").to_numpy()  # in parts edited with other tools
            rows, embeddings = rows[last].reset_index(drop=True), embeddings[last]
            stored = _stored(catalog, rows)
            changed = stored["content"].to_numpy() != rows["content"].to_numpy()
            files = EmbeddedFiles(embeddings[changed], rows["content"].tolist(), [""] * len(rows))
            _update(catalog, rows, stored, files, changes)
            progress.advance(len(rows), "images")
            report(progress.done, meta.images)
    unreadable = _rows(unreadable_images(folder, meta), Path(meta.root), Path(catalog.root))
    changes.ids += unreadable["id"].tolist()  # for prune
    return changes


def images_to_prune(catalog: Catalog, ids: Iterable[str], limit: int | None = None) -> pd.DataFrame:
    """Return ``id`` and ``path`` of all images except those with these ids.

    Raises InputError for more than `limit` images. Without a limit: for more than a tenth of the catalog, all images of
    a top-level folder, or images whose folder is missing or empty (a disk may not be mounted).
    """
    images = pd.concat([pd.DataFrame(columns=["id", "path"]), *catalog.iterate_rows(["id", "path"])], ignore_index=True)
    is_kept = images["id"].isin(set(ids))
    gone = images[~is_kept].reset_index(drop=True)
    folders = {Path(catalog.root, path).parent for path in gone["path"]} if limit is None else set()
    away = sorted(folder for folder in folders if not folder.is_dir() or not any(folder.iterdir()))
    tops = {path.split("/")[0] for path in gone["path"] if "/" in path}
    tops -= {path.split("/")[0] for path in images["path"][is_kept]}
    if away:
        problem = f"{away[0]} is missing or empty"
    elif tops and limit is None:
        problem = f"all images of the folder {min(tops)}"
    elif len(gone) > (len(images) / 10 if limit is None else limit):
        problem = f"more than {'a tenth' if limit is None else limit}, for example {gone['path'].iloc[0]}"
    else:
        return gone
    hint = f"if they are gone for good, raise the prune limit to {len(gone)}"
    raise InputError(f"would remove {len(gone)} of {len(images)} images: {problem}", field="prune", hint=hint)


def delete_paths(catalog: Catalog, paths: Sequence[str]) -> int:
    """Delete images by path, with all boxes, or by folder; return their number. InputError if a path matches none."""
    targets = {relative_path(Path(catalog.root) / path, Path(catalog.root)): path for path in paths}
    chosen: dict[str, list[str]] = {target: [] for target in targets}
    for page in catalog.iterate_rows(["id", "path"]):
        for target, ids in chosen.items():
            matches = (page["path"] == target) | page["path"].str.startswith((f"{target}/", f"{target}#xywh="))
            ids.extend(page["id"][matches])
    if missing := [target for target, ids in chosen.items() if not ids]:
        hint = f"give paths relative to {catalog.root}"
        raise InputError(f"no such image or folder in {catalog.address}", path=targets[min(missing)], hint=hint)
    return catalog.delete([key for ids in chosen.values() for key in ids])


def migrate(
    catalog: Catalog,
    embedder: AnyEmbedder,
    model_path: str,
    batch_size: int = 128,
    workers: int = 0,
    report: Report = lambda done, total: None,
) -> tuple[int, int]:
    """Embed all images of a catalog with another model, then replace its rows and its model atomically.

    Another call with the same model resumes an interrupted one. Returns the number of stored images used as queries,
    and of those whose nearest neighbor has changed. Open the catalog again afterwards. Raises InputError if an image
    cannot be read, as it would be lost.
    """
    address, root, version = catalog.versioned_store.migration, catalog.root, catalog.versioned_store.version
    names = ["id", "path", "label", "group"]
    images = pd.concat([pd.DataFrame(columns=names), *catalog.iterate_rows(names)], ignore_index=True)
    missing = [path for path in images["path"] if not Path(root, split_box(path)[0]).is_file()]
    if missing:
        problem = f"{len(missing)} of {len(images)} images are missing, for example {missing[0]}"
        raise InputError(problem, path=root, hint=RESTORE)
    exists = Catalog.exists(address)
    arguments = address, embedder.embedding_dim, embedder.identity, model_path, root
    with Catalog.open(address) if exists else Catalog.create(*arguments) as migrated:
        if migrated.model != embedder.identity:
            hint = f"finish it with {migrated.model_path}, or delete {address}"
            raise InputError("a migration to another model is unfinished", field="migrate_to", hint=hint)
        changes = index_images(migrated, Collection(Path(root), images), embedder, batch_size, workers, report)
        if changes.unreadable:
            path, reason = changes.unreadable[0]
            problem = f"{path}: {reason}; {len(changes.unreadable)} images cannot be embedded again"
            raise InputError(problem, path=catalog.address, hint=RESTORE)
        migrated.delete([key for page in migrated.iterate_rows(["id"]) for key in set(page["id"]) - set(images["id"])])
        queries = migrated.sample_ids(200)
        changed = _nearest_neighbors(catalog, queries).items() ^ _nearest_neighbors(migrated, queries).items()
        meta = migrated.meta.model_copy(update={"root": root, "model_path": model_path})
        catalog.versioned_store.replace_by(migrated.versioned_store, meta.model_dump_json(), version)
    return len(queries), len({key for key, _ in changed})


def _nearest_neighbors(catalog: Catalog, ids: list[str]) -> dict[str, str | None]:
    """Return the nearest neighbor of each image, itself left out."""
    rows = catalog.get(ids, with_embeddings=True)
    found = catalog.search(embedding_matrix(rows, catalog.dim), k=2)
    pairs = zip(rows["id"], found, strict=True)
    return {key: next((hit.id for hit in hits if hit.id != key), None) for key, hits in pairs}


def fit_index(catalog: Catalog) -> float | None:
    """Tidy up a catalog; if it is too large for exact search, build an index and return its recall, else None."""
    catalog.store.optimize()
    if catalog.store.index_type != "FLAT" or len(catalog) < catalog.store.exact_below:
        return None
    measure = recall_measure(catalog)
    catalog.store.build_index(measure)
    return measure()


def recall_measure(catalog: Catalog, k: int = 10) -> Callable[[], float]:
    """Search exactly for 100 images of the catalog; return a function that measures Recall@k; ties are found."""
    queries = embedding_matrix(catalog.get(catalog.sample_ids(100), with_embeddings=True), catalog.dim)
    best = np.full((len(queries), k), -np.inf, dtype=np.float32)
    with Progress("recall of the index", len(catalog)) as progress:
        for page in catalog.iterate_rows(["embedding"]):
            similarity = queries @ embedding_matrix(page, catalog.dim).T
            best = -np.sort(-np.hstack([best, similarity]), axis=1)[:, :k]
            progress.advance(len(page))
    expected = min(k, len(catalog)) * len(queries)

    def measure() -> float:
        results = zip(catalog.search(queries, k), best[:, -1] - 1e-5, strict=True)
        return sum(hit.similarity >= kth for hits, kth in results for hit in hits) / expected

    return measure


def _rows(images: pd.DataFrame, root: Path, catalog_root: Path) -> pd.DataFrame:
    """Add the ids, files and paths relative to the catalog's root."""
    files = [str(root / path) for path in images["path"]]
    paths = [relative_path(Path(file), catalog_root) for file in files]
    return images.reset_index(drop=True).assign(id=[image_id(path) for path in paths], path=paths, file=files)


def relative_path(file: Path, root: Path) -> str:
    """Return the path relative to the root, without following links."""
    path = os.path.relpath(file, root).replace(os.sep, "/")
    if path == ".." or path.startswith("../"):
        raise InputError(f"outside the catalog's root {root}", path=file, hint="create the catalog with a root above")
    return path


def _stored(catalog: Catalog, rows: pd.DataFrame) -> pd.DataFrame:
    """Return the catalog's values for these images, row by row; None where there are none."""
    known = catalog.get(rows["id"].tolist()).set_index("id").reindex(rows["id"])[VALUES].reset_index(drop=True)
    return known.astype(object).where(known.notna(), None)
