"""The verbs of searching, as the command line calls them: export, embed, index, search, serve."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar, get_type_hints

import torch
from jsonargparse import ArgumentParser, Namespace

from orthoproxy import builders
from orthoproxy.config import Config, Data, Training, with_absolute_paths
from orthoproxy.data import Collection, make_collection, only, read_collection
from orthoproxy.errors import InputError, refusals_of_the_disk
from orthoproxy.processes import agreed, is_first_of_machine, is_main, meet, process_count
from orthoproxy.progress import duration
from orthoproxy.recipes import parse
from orthoproxy.search import load_model
from orthoproxy.search.embed import UNREADABLE, embed_collection

T = TypeVar("T")


def _parser(verb: str, description: str) -> ArgumentParser:
    return ArgumentParser(prog=f"orthoproxy {verb}", description=description, exit_on_error=False, allow_abbrev=False)


def run_export(arguments: list[str]) -> None:
    """Write a model as ONNX, checked against the original."""
    parser = _parser("export", "Write a trained model as ONNX, checked against the original on its test images.")
    parser.add_argument("model", help="A run folder.")
    parse(parser, arguments)
    raise InputError("export: not built yet")


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
    meet(torch.device("cpu"))  # all that is exchanged is small
    collection = _of_first_process(lambda: read_images(options))
    model = _of_first_process(lambda: load_model(options.model, _device(options.accelerator)))
    with refusals_of_the_disk(options.out, "run it again"):
        done = embed_collection(
            model, options.model, collection, options.out, options.batch_size, options.workers, options.part_size
        )
    if is_main():
        again = (
            f"{done.made} of them now, in {duration(done.seconds)}, {done.rate:.0f} images/s" if done.made else "before"
        )
        print(f"{options.out}: {done.images} images embedded, {again}")
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
    parser.add_argument("--data.name", type=get_type_hints(Data)["name"] | None, help="A data set.")
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
    data = with_absolute_paths(Config(data=Data(source.name, source.root, source.path)).check()).data
    table = builders.read_table(data)
    if data.name == "csv" and root is None:
        root = Path(data.path or "").parent
    collection = make_collection(
        table, None if data.name == "icons" else root
    )  # icons lie in a folder of their version
    if options.split is None:
        return collection
    chosen = only(table, options.split)
    if chosen.empty:
        there = ", ".join(sorted(set(table["split"]) - {""})) or "none"
        raise InputError(f"--split: {data.name} has no images of {options.split}; its splits: {there}")
    return make_collection(chosen, collection.root)


def _of_first_process(make: Callable[[], T]) -> T:
    """Let one process of a machine come first, which fills caches: rendered icons, a model from the hub."""
    made: list[T] = []
    for turn in (is_first_of_machine(), True):
        with agreed():
            if turn and not made:
                made.append(make())
    return made[0]


def _device(accelerator: str) -> str:
    """Where this process computes: of several GPUs, each process has its own."""
    device = builders.choose_accelerator(accelerator, "--accelerator")
    if device != "cuda" or process_count() == 1:
        return device
    here, there = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if here >= there:
        raise InputError(f"torchrun: {there} cuda devices here; lower --nproc-per-node, or give --accelerator cpu")
    return f"cuda:{here}"


def run_index(arguments: list[str]) -> None:
    """Make a catalog, or add to one, replace and delete."""
    raise InputError("index: not built yet")


def run_search(arguments: list[str]) -> None:
    """Search a catalog by picture."""
    raise InputError("search: not built yet")


def run_serve(arguments: list[str]) -> None:
    """Serve catalogs over HTTP, with a page to search on."""
    raise InputError("serve: not built yet")
