"""`orthoproxy index`."""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orthoproxy.cli.embed import add_collection, read_images
from orthoproxy.cli.options import MODEL_OR_ONNX, Parser, at_least
from orthoproxy.core.errors import InputError, os_errors_as_input_errors

if TYPE_CHECKING:
    from orthoproxy.catalog.catalog import Catalog
    from orthoproxy.data.sources.collection import Collection
    from orthoproxy.embedding.onnx_embedder import AnyEmbedder

CATALOG = "A folder, s3://BUCKET/NAME, or a Milvus server: http://HOST:19530/NAME (token in MILVUS_TOKEN)."


def add_options(parser: Parser) -> None:
    parser.add_argument("catalog", metavar="CATALOG", help=f"{CATALOG} Created if it does not exist.")
    add_collection(parser)
    parser.add_argument("--model", help=f"{MODEL_OR_ONNX} Required for a new catalog of images, or if it was moved.")
    parser.add_argument("--root", metavar="FOLDER", help="Folder that paths are relative to; also if it was moved.")
    parser.add_argument("--delete", nargs="+", metavar="PATH", default=[], help="Remove these images or folders.")
    parser.add_argument("--prune", action="store_true", help="Remove all images that are not among IMAGES.")
    text = "Remove up to N images, even if their folder is gone (default: a tenth, from folders that exist)."
    parser.add_argument("--prune-limit", type=at_least(0), metavar="N", help=text)
    parser.add_argument("--migrate-to", metavar="MODEL", help="Embed all images by another model, then switch to it.")
    parser.add_argument("--undo", action="store_true", help="Restore the catalog before the last change.")
    parser.add_argument("--history", action="store_true", help="List the changes that can be undone.")
    parser.add_argument("--info", action="store_true", help="Print what the catalog holds.")
    parser.add_json()
    parser.epilog = "IMAGES may also be a folder written by `orthoproxy embed`. Unchanged images are skipped."


def run(options: Any) -> None:
    steps = options.undo, options.migrate_to, options.delete, options.history, options.info
    if not (options.images or options.root or options.model or any(steps)):
        raise InputError("missing", field="images", expected="IMAGES, or what to do without")
    if options.prune and not options.images:
        raise InputError("missing", field="images", expected="the images to keep, as --prune is given")
    changes = options.images, options.root, options.model, options.migrate_to, options.delete
    if options.undo and any(changes):
        raise InputError("cannot be combined with other changes", field="undo")
    with os_errors_as_input_errors(options.catalog, "run the command again"):
        results = _index(options) if options.images else {}
        options.write_json(results | (_maintain(options) if any(steps) or not options.images else {}))


def _index(options: Any) -> dict[str, Any]:
    from orthoproxy.catalog import index
    from orthoproxy.catalog.catalog import Catalog, load_catalog_model, require_model
    from orthoproxy.core.progress import duration
    from orthoproxy.embedding.onnx_embedder import load_model
    from orthoproxy.embedding.parquet_store import META, embedding_meta

    start = time.monotonic()
    embeddings = Path(options.images) if (Path(options.images) / META).is_file() else None
    outputs = {"catalog": options.catalog, "json": options.json}
    images = read_images(options, **outputs) if embeddings is None else None
    exists = Catalog.exists(options.catalog)
    identity = "" if embeddings is None else embedding_meta(embeddings).model
    model = load_model(options.model, options.device, identity) if options.model and not exists else None
    with Catalog.open(options.catalog) if exists else _create(options, model, images, embeddings) as catalog:
        if options.root and Path(options.root).absolute() != Path(catalog.root):
            hint = f"if the images were moved, first: orthoproxy index {options.catalog} --root {options.root}"
            raise InputError(options.root, field="root", expected=catalog.root, hint=hint)
        if options.model:
            model = model or load_model(options.model, options.device, catalog.model)
            require_model(catalog, model.identity, "model")
        with catalog.store.undoable() if exists else nullcontext():
            if images is not None:
                model = model or load_catalog_model(catalog, options.device)
                sizes = options.batch_size, options.workers
                changes = index.index_images(catalog, images, model, *sizes, _print_progress)
            else:
                changes = index.index_embeddings(catalog, Path(options.images), _print_progress)
            removed = _prune(catalog, changes.ids, options.prune_limit) if options.prune else 0
        recall = index.fit_index(catalog)
        total = len(catalog)
    seconds, written = time.monotonic() - start, changes.added + changes.replaced
    counts = f"{changes.added} added, {changes.replaced} replaced, {changes.relabeled} relabeled, "
    counts += f"{changes.unchanged} unchanged, {removed} removed"
    print(f"{options.catalog}: {total} images: {counts}")
    if written:
        print(f"in {duration(seconds)}, {written / max(seconds, 1e-9):.0f} images/s")
    if recall is not None:
        print(f"approximate index: recall@10 {recall:.3f} against exact search")
    if changes.unreadable:
        print(f"note: {len(changes.unreadable)} unreadable images, not indexed anew")
        for path, reason in changes.unreadable:
            print(f"  {path}: {reason}")
    result = {name: value for name, value in asdict(changes).items() if name != "ids"}
    return result | {"images": total, "removed": removed, "index_recall": recall}


def _prune(catalog: Catalog, ids: list[str], limit: int | None) -> int:
    """Print which images are removed, and remove them."""
    from orthoproxy.catalog.index import images_to_prune

    gone = images_to_prune(catalog, ids, limit)
    for path in gone["path"]:
        print(f"removing {path}", flush=True)
    return catalog.delete(gone["id"].tolist())


def _create(options: Any, model: AnyEmbedder | None, images: Collection | None, embeddings: Path | None) -> Catalog:
    """Create a catalog for the model given, or for the one that computed the embeddings."""
    from orthoproxy.catalog.catalog import Catalog
    from orthoproxy.catalog.index import relative_path
    from orthoproxy.embedding.parquet_store import embedding_meta, read_parts

    if embeddings is not None:
        meta = embedding_meta(embeddings)
        read_parts(embeddings)  # raises before the catalog is created
        if model is not None and model.identity != meta.model:
            raise InputError(f"not the model of {embeddings}, {meta.model_path}", field="model")
        place, root, dim, identity = options.model or meta.model_path, meta.root, meta.dim, meta.model
    elif model is not None and images is not None:
        place, root, dim, identity = options.model, images.root, model.embedding_dim, model.identity
    else:
        raise InputError("missing", field="model", expected="a model, as the catalog does not exist yet")
    if options.root:
        relative_path(Path(root), Path(options.root).absolute())
    return Catalog.create(options.catalog, dim, identity, _place(place), options.root or root)


def _maintain(options: Any) -> dict[str, Any]:
    """Do what was asked for with a catalog that exists."""
    from orthoproxy.catalog import index
    from orthoproxy.catalog.catalog import Catalog, require_model
    from orthoproxy.embedding.onnx_embedder import load_model

    results: dict[str, Any] = {}
    with Catalog.open(options.catalog) as catalog:
        if options.undo:
            catalog.versioned_store.undo()
            print(f"{options.catalog}: {len(catalog)} images, as before the last change")
        if not options.images and (options.root or options.model):
            if options.model:
                require_model(catalog, load_model(options.model, identity=catalog.model).identity, "model")
            with catalog.store.undoable():
                catalog.move(options.root and Path(options.root), options.model and _place(options.model))
            print(f"{options.catalog}: images in {catalog.root}, model {catalog.model_path}")
        if options.delete:
            with catalog.store.undoable(allow_migration=True):
                results["deleted"] = index.delete_paths(catalog, options.delete)
            print(f"{options.catalog}: {results['deleted']} deleted", flush=True)
        if options.migrate_to:
            model = load_model(options.migrate_to, options.device, catalog.model)
            sizes = options.batch_size, options.workers
            queries, changed = index.migrate(catalog, model, _place(options.migrate_to), *sizes, _print_progress)
            print(f"{options.catalog}: migrated; of {queries} images, {changed} have another nearest neighbor")
            results["migrated"] = {"queries": queries, "changed": changed}
    with Catalog.open(options.catalog) as catalog:
        if options.migrate_to:
            index.fit_index(catalog)
        if options.history:
            history = catalog.versioned_store.history()
            results["history"] = [{"changed": when, "images_before": count} for when, count in history]
            for when, count in history:
                print(f"changed {when}: {count} images before")
        if options.info:
            results["info"] = catalog.info()
            for name, value in results["info"].items():
                print(f"{name.replace('_', ' ')}: {value}")
    return results


def _place(model: str) -> str:
    return str(Path(model).absolute()) if Path(model).exists() else model  # else a name on the Hub


def _print_progress(done: int, total: int) -> None:
    print(f"indexed {done}/{total}", flush=True)  # this many are safely written
