"""The verbs of searching, as the command line calls them: export, embed, index, search, serve."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, get_type_hints

import torch
from jsonargparse import ArgumentParser, Namespace

from orthoproxy.core.distributed import init_process_group, is_first_of_machine, is_main, process_count, raise_together
from orthoproxy.core.errors import InputError, os_errors_as_input_errors
from orthoproxy.core.progress import duration
from orthoproxy.data import Collection, make_collection, read_collection, select_split
from orthoproxy.embedding.collections import embed_collection
from orthoproxy.embedding.embedder import Embedder
from orthoproxy.embedding.onnx_embedder import OnnxEmbedder, load_model
from orthoproxy.embedding.parquet_store import META, UNREADABLE, embedding_meta
from orthoproxy.runs import build as builders
from orthoproxy.runs.config import Config, Data, Training, with_absolute_paths
from orthoproxy.runs.evaluate import FALSE_MATCH_RATE
from orthoproxy.runs.fabric import choose_accelerator
from orthoproxy.runs.recipes import parse

if TYPE_CHECKING:
    from orthoproxy.catalog.catalog import Catalog, Hit
    from orthoproxy.catalog.index import Changes

T = TypeVar("T")
CATALOG = "A folder; or http://host:19530 or http://host:19530/NAME, a Milvus server (MILVUS_TOKEN holds its token)."


def _parser(verb: str, description: str) -> ArgumentParser:
    return ArgumentParser(prog=f"orthoproxy {verb}", description=description, exit_on_error=False, allow_abbrev=False)


def run_export(arguments: list[str]) -> None:
    """Write a model as ONNX, checked against the original."""
    parser = _parser("export", "Write a trained model as ONNX, checked against the original on the run's test images.")
    parser.add_argument("run", help="A run folder.")
    parser.add_argument("--out", required=True, help="The ONNX file; the folder model/ with its card is put beside it.")
    parser.add_argument("--int8", action="store_true", help="8-bit weights: a quarter of the size, faster, less exact.")
    parser.add_argument(
        "--false-match-rate",
        type=float,
        default=FALSE_MATCH_RATE,
        help="The share of queries of unknown classes that may get a match; sets the threshold of `no match`.",
    )
    parser.add_argument("--license", type=str | None, help="Of the model, for its card, for example apache-2.0.")
    parser.add_argument("--data.root", type=str | None, help="Where the run's images are now, if they were moved.")
    parser.add_argument("--data.path", type=str | None, help="Where its CSV file is now.")
    parser.add_argument("--data.workers", type=int, default=1, help="Processes that read images.")
    options = parse(parser, arguments)
    if not options.out.endswith(".onnx"):
        raise InputError(f"--out: {options.out}; give a file that ends in .onnx")
    from orthoproxy.runs.export import export_run

    with os_errors_as_input_errors(options.out, "run it again"):
        for line in export_run(
            options.run,
            Path(options.out),
            options.int8,
            options.false_match_rate,
            options.license,
            options.data.root,
            options.data.path,
            options.data.workers,
        ):
            print(line)


def run_embed(arguments: list[str]) -> None:
    """Embed a collection of images into Parquet parts."""
    parser = _parser(
        "embed", "Embed a collection of images into Parquet parts; run again, it goes on where it stopped."
    )
    parser.add_argument("model", help="A run, a model folder, a name on the hub, or an .onnx file.")
    add_images(parser)
    parser.add_argument("--out", required=True, help="The folder for the parts.")
    parser.add_argument("--batch-size", type=int, default=128, help="Images that go through the encoder at once.")
    parser.add_argument("--workers", type=int, default=1, help="Processes that read images, for each that embeds.")
    parser.add_argument("--part-size", type=int, default=10_000, help="Images of a part.")
    parser.add_argument("--accelerator", type=get_type_hints(Training)["accelerator"], default="auto")
    options = parse(parser, arguments)
    init_process_group(torch.device("cpu"))  # all that is exchanged is small
    collection = _of_first_process(lambda: read_images(options))
    model = _of_first_process(lambda: load_model(options.model, _device(options.accelerator)))
    with os_errors_as_input_errors(options.out, "run it again"):
        done = embed_collection(
            model, options.model, collection, options.out, options.batch_size, options.workers, options.part_size
        )
    if is_main():
        now = f", {done.new_images} of them now in {duration(done.seconds)}, {done.rate:.0f} images/s" if done.new_images else ""
        print(f"{options.out}: {done.images} images embedded{now}")
        if len(done.unreadable):
            print(
                f"note: unreadable images left out: {len(done.unreadable)}, listed in {Path(options.out) / UNREADABLE}"
            )


def add_images(parser: ArgumentParser) -> None:
    """Give a parser the options that say which images; `read_images` reads them."""
    parser.add_argument(
        "images",
        nargs="?",
        help="A folder of images, or a CSV file with a column path and maybe label and group; or give --data.name.",
    )
    parser.add_argument("--data.name", type=get_type_hints(Data)["name"], help="A data set.")
    parser.add_argument("--data.root", type=str | None, help="Its folder; of a CSV file, where its paths start.")
    parser.add_argument("--data.path", type=str | None, help="Its CSV file, for --data.name csv.")
    parser.add_argument("--split", choices=["train", "validation", "test"], help="Only this split of a data set.")


def read_images(options: Namespace) -> Collection:
    """Find the images that the options of `add_images` name."""
    source = options.data
    root = Path(source.root) if source.root else None
    if (options.images is None) == (source.name is None):
        raise InputError("images: give either a folder or CSV file, or a data set by --data.name")
    if options.images is not None:
        if options.split or source.path:
            raise InputError(f"{'--split' if options.split else '--data.path'}: goes with --data.name")
        return read_collection(Path(options.images), root)
    # what is outside the root is refused below, for all sources alike
    data = Data(source.name, source.root, source.path, outside_root=True)
    data = with_absolute_paths(Config(data=data).check()).data
    table = builders.read_table(data)
    if data.name == "csv" and root is None:
        root = Path(data.path or "").parent
    collection = make_collection(
        table, None if data.name == "icons" else root
    )  # icons lie in a folder of their version
    if options.split is None:
        return collection
    chosen = select_split(table, options.split)
    if chosen.empty:
        there = ", ".join(sorted(set(table["split"]) - {""})) or "none"
        raise InputError(f"--split: {data.name} has no images of {options.split}; its splits: {there}")
    return make_collection(chosen, collection.root)


def _of_first_process(make: Callable[[], T]) -> T:
    """Let one process of a machine come first, which fills caches: rendered icons, a model from the hub."""
    made: list[T] = []
    for turn in (is_first_of_machine(), True):
        with raise_together():
            if turn and not made:
                made.append(make())
    return made[0]


def _device(accelerator: str) -> str:
    """Where this process computes: of several GPUs, each process has its own."""
    device = choose_accelerator(accelerator, "--accelerator")
    if device != "cuda" or process_count() == 1:
        return device
    here, there = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if here >= there:
        raise InputError(f"torchrun: {there} cuda devices here; lower --nproc-per-node, or give --accelerator cpu")
    return f"cuda:{here}"


def run_index(arguments: list[str]) -> None:
    """Make a catalog, or add to one, replace and delete."""
    parser = _parser(
        "index",
        "Put images, or embeddings that `orthoproxy embed` made, into a catalog, which is made where there is none. "
        "Images that are there as they are now are left alone.",
    )
    parser.add_argument("catalog", help=CATALOG)
    add_images(parser)
    parser.add_argument("--model", help="A run, a model folder, a name on the hub, or an .onnx file.")
    parser.add_argument("--root", help="Of a new catalog: the folder that paths start from (default: the images').")
    parser.add_argument("--delete", nargs="+", metavar="PATH", default=[], help="Take images out, by file or folder.")
    parser.add_argument("--prune", action="store_true", help="Take out all images but those given.")
    parser.add_argument("--info", action="store_true", help="Say what the catalog holds.")
    parser.add_argument("--batch-size", type=int, default=128, help="Images that go through the encoder at once.")
    parser.add_argument("--workers", type=int, default=1, help="Processes that read images.")
    parser.add_argument("--accelerator", type=get_type_hints(Training)["accelerator"], default="auto")
    options = parse(parser, arguments)
    given = options.images is not None or options.data.name is not None
    if not (given or options.delete or options.info):
        raise InputError("index: nothing to do; give images or embeddings, --delete or --info")
    if options.prune and not given:
        raise InputError("--prune: give the images that are to stay")
    for name, value, least in (("batch-size", options.batch_size, 1), ("workers", options.workers, 0)):
        if value < least:
            raise InputError(f"--{name}: {value}; give {least} or more")
    with os_errors_as_input_errors(options.catalog, "run it again"):
        if given:
            _index(options)
        _tend(options)


def _index(options: Namespace) -> None:
    from orthoproxy.catalog import index
    from orthoproxy.catalog.catalog import Catalog

    start = time.monotonic()
    folder = Path(options.images) if options.images and (Path(options.images) / META).is_file() else None
    model = _load(options.model, options) if options.model else None
    images = read_images(options) if folder is None else None
    there = Catalog.exists(options.catalog)
    with Catalog.open(options.catalog) if there else _new_catalog(options, model, images, folder) as catalog:
        if options.root and Path(options.root).absolute() != Path(catalog.root):
            raise InputError(f"--root: paths of {options.catalog} start from {catalog.root}; that cannot be changed")
        if model is not None:
            index.require_model(catalog, model.identity, "model")
        if images is None:
            assert folder is not None
            changes = index.index_embeddings(catalog, folder, _acknowledge)
        else:
            model = model or _load(catalog.model_path, options)
            changes = index.index_images(catalog, images, model, options.batch_size, options.workers, _acknowledge)
        taken = index.prune(catalog, changes.ids) if options.prune else 0
        recall = index.fit_index(catalog)
        count = len(catalog)
    _tell(options, changes, count, taken, time.monotonic() - start)
    if recall is not None:
        print(f"index HNSW: recall@10 {recall:.3f} against the exact search")
    if changes.unreadable:
        print(f"note: unreadable images left out: {len(changes.unreadable)}")
        for path, reason in changes.unreadable:
            print(f"  {path}: {reason}")


def _new_catalog(
    options: Namespace, model: Embedder | OnnxEmbedder | None, images: Collection | None, folder: Path | None
) -> Catalog:
    """Make a catalog, for the model given or for the one that made the embeddings in a folder."""
    from orthoproxy.catalog.catalog import Catalog

    if images is None:
        assert folder is not None
        about = embedding_meta(folder)
        place, root = options.model or about.model_path, about.root
        dim, identity = about.dim, about.model
    elif model is None:
        raise InputError("--model: missing; say what embeds, for example --model runs/icons")
    else:
        place, root, dim, identity = options.model, images.root, model.embedding_dim, model.identity
    return Catalog.create(options.catalog, dim, identity, _absolute(place), options.root or root)


def _tell(options: Namespace, changes: Changes, count: int, taken: int, seconds: float) -> None:
    """Say what became of the images, and how fast."""
    parts = [f"{changes.added} added", f"{changes.replaced} replaced", f"{changes.unchanged} unchanged"]
    parts += [f"{taken} taken out"] if options.prune else []
    print(f"{options.catalog}: {count} images: {', '.join(parts)}")
    if written := changes.added + changes.replaced:
        print(f"in {duration(seconds)}, {written / max(seconds, 1e-9):.0f} images/s")


def _tend(options: Namespace) -> None:
    """Delete, and say what there is."""
    if not (options.delete or options.info):
        return
    from orthoproxy.catalog.catalog import Catalog
    from orthoproxy.catalog.index import delete_paths

    with Catalog.open(options.catalog) as catalog:
        if options.delete:
            print(f"{options.catalog}: {delete_paths(catalog, options.delete)} taken out", flush=True)
        if options.info:
            for name, value in catalog.info().items():
                print(f"{name.replace('_', ' ')}: {value}")


def _acknowledge(done: int, total: int) -> None:
    """Tell that so many rows are safe, to whom may end this process any moment."""
    print(f"indexed {done}/{total}", flush=True)


def _load(place: str, options: Namespace) -> Embedder | OnnxEmbedder:
    return load_model(place, choose_accelerator(options.accelerator, "--accelerator"))


def _absolute(place: str) -> str:
    """Where a model is, seen from everywhere; names on the hub stay."""
    return str(Path(place).absolute()) if Path(place).exists() else place


def run_search(arguments: list[str]) -> None:
    """Search a catalog by picture."""
    parser = _parser("search", "Find the images of a catalog that are most similar to others.")
    parser.add_argument("catalog", help=CATALOG)
    parser.add_argument("images", nargs="+", help="Image files to search by.")
    parser.add_argument("-k", type=int, default=10, help="How many to find.")
    parser.add_argument("--where", help="A condition on label, group and path, for example 'label != \"x\"'.")
    parser.add_argument("--diverse", action="store_true", help="One result a group, or a label without a group.")
    parser.add_argument(
        "--min-similarity", type=str | None, help="Leave out what is less similar; auto: the model's own threshold."
    )
    parser.add_argument("--model", help="Where the catalog's model is now, if it was moved.")
    parser.add_argument("--json", action="store_true", help="Print JSON.")
    parser.add_argument("--accelerator", type=get_type_hints(Training)["accelerator"], default="auto")
    options = parse(parser, arguments)
    from orthoproxy.catalog.catalog import Catalog
    from orthoproxy.catalog.filters import parse_filter
    from orthoproxy.catalog.index import require_model

    if options.where is not None:
        parse_filter(options.where)  # before a model is loaded
    with Catalog.open(options.catalog) as catalog:
        model = _load(options.model or catalog.model_path, options)
        require_model(catalog, model.identity, "model")
        least = _least_similarity(options.min_similarity, model.threshold)
        queries = model.embed(options.images)
        found = catalog.search(queries, options.k, options.where, options.diverse)
    results = [[hit for hit in hits if hit.similarity >= least] for hits in found]
    if options.json:
        pairs = zip(options.images, results, strict=True)
        told = [{"image": image, "results": [vars(hit) for hit in hits]} for image, hits in pairs]
        print(json.dumps(told, indent=2, ensure_ascii=False))
        return
    for image, hits in zip(options.images, results, strict=True):
        _print_hits(image, hits)


def _least_similarity(wanted: str | None, threshold: float | None) -> float:
    if wanted is None:
        return -math.inf
    if wanted == "auto":
        if threshold is None:
            raise InputError("--min-similarity: the model has no threshold; give a number from -1 to 1")
        return threshold
    try:
        least = float(wanted)
    except ValueError:
        least = math.nan
    if not -1 <= least <= 1:
        raise InputError(f"--min-similarity: {wanted}; give a number from -1 to 1, or auto")
    return least


def _print_hits(image: str, hits: list[Hit]) -> None:
    print(image if hits else f"{image}: no match")
    grouped = any(hit.group for hit in hits)
    for rank, hit in enumerate(hits, start=1):
        group = f"  {hit.group}" if grouped else ""
        print(f"{rank:4}  {hit.similarity:.3f}  {hit.label}{group}  {hit.path}")


def run_serve(arguments: list[str]) -> None:
    """Serve catalogs over HTTP, with a page to search on."""
    parser = _parser("serve", "Search catalogs over HTTP and on a page.")
    parser.add_argument("catalog", nargs="+", help=CATALOG + " The first is the default, others are to compare with.")
    parser.add_argument("--host", default="127.0.0.1", help="The address to listen on; another needs a token.")
    parser.add_argument("--port", type=int, default=7860, help="The port; 0 for any that is free.")
    parser.add_argument("--token", type=str | None, help="What a client must know; better set ORTHOPROXY_TOKEN.")
    parser.add_argument("--name", action="append", default=[], help="Another name of this server, behind a proxy.")
    parser.add_argument(
        "--model", action="append", default=[], help="A model that has moved since it was indexed with."
    )
    parser.add_argument("--upload-megabytes", type=float, default=20.0, help="The most of a picture's file.")
    parser.add_argument("--megapixels", type=float, default=50.0, help="The most of a picture.")
    options = parse(parser, arguments)
    from orthoproxy.server.serve import serve

    serve(
        options.catalog,
        options.host,
        options.port,
        options.token or os.environ.get("ORTHOPROXY_TOKEN") or None,
        options.name,
        options.model,
        options.upload_megabytes,
        options.megapixels,
    )
