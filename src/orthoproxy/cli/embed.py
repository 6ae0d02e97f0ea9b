"""`orthoproxy embed`, and how it and `index` read IMAGES."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from orthoproxy.cli.options import AUGMENT, DATASETS, MODEL_OR_ONNX, Parser, at_least, config_overrides
from orthoproxy.core.errors import InputError, os_errors_as_input_errors

if TYPE_CHECKING:
    from orthoproxy.data.sources.collection import Collection


def add_options(parser: Parser) -> None:
    add = parser.add_argument
    add("model", metavar="MODEL", help=MODEL_OR_ONNX)
    add_collection(parser, required=True)
    add("--out", required=True, metavar="FOLDER", help="Folder of the Parquet files; resumed if it exists.")
    add("--part-size", type=at_least(1), default=10_000, metavar="N", help="Images per file (default: 10000).")
    add("--augment", action="store_true", help=AUGMENT)
    parser.add_json()


def add_collection(parser: Parser, required: bool = False) -> None:
    """Add the options of `read_images` and those of embedding them."""
    parser.add_images(required)
    parser.add_argument("--split", choices=("train", "validation", "test"), help="Only this split of a dataset.")
    parser.add_argument("--batch-size", type=at_least(1), default=128, metavar="N", help="Batch size (default: 128).")
    parser.add_workers()
    parser.add_device()
    parser.add_config_options(["data.root", "data.boxes"], "images")


def run(options: Any) -> None:
    import torch

    from orthoproxy.core.distributed import init_process_group, is_first_of_machine, is_main, raise_together
    from orthoproxy.core.progress import duration
    from orthoproxy.embedding.augmentation import AUGMENTED
    from orthoproxy.embedding.collections import embed_collection
    from orthoproxy.embedding.onnx_embedder import load_model
    from orthoproxy.embedding.parquet_store import UNREADABLE
    from orthoproxy.runs.device import own_device

    init_process_group(torch.device("cpu"))  # only small objects are exchanged
    loaded = None
    for turn in (True, False):  # one process of each machine fills the caches (icons, the Hub) before the others
        with raise_together():
            if is_first_of_machine() == turn:
                loaded = (
                    read_images(options, out=options.out, json=options.json),
                    load_model(options.model, own_device(options.device), AUGMENTED if options.augment else ""),
                )
    assert loaded is not None
    collection, model = loaded
    with os_errors_as_input_errors(options.out, "run the command again"):
        result = embed_collection(
            model, options.model, collection, options.out, options.batch_size, options.workers, options.part_size
        )
        if not is_main():
            return
        options.write_json({**vars(result), "unreadable": result.unreadable.to_dict("records")})
        new, seconds = result.new_images, result.seconds
        speed = f"; {new} read now, in {duration(seconds)}, {new / max(seconds, 1e-9):.0f} images/s"
        print(f"{options.out}: {result.images} images embedded{speed if new else ''}")
        if len(result.unreadable):
            print(f"note: {len(result.unreadable)} unreadable images left out, see {Path(options.out) / UNREADABLE}")


def read_images(options: Any, **outputs: str | None) -> Collection:
    """Return the images that the options of `add_collection` name; raises InputError for outputs among them."""
    from orthoproxy.data import read_collection
    from orthoproxy.data.sources.collection import make_collection
    from orthoproxy.data.sources.packed import SUFFIXES
    from orthoproxy.data.table import select_split
    from orthoproxy.runs.config import Config, DataConfig
    from orthoproxy.runs.dataset import read_table, require_outside, unpack_images

    if options.images not in DATASETS and Path(options.images).is_dir():
        require_outside(DataConfig(name="folder", root=options.images), **outputs)
    overrides = config_overrides(options)
    root = Path(overrides["data.root"]) if "data.root" in overrides else None
    # make_collection rejects what lies outside the root
    data = Config().with_overrides(overrides | {"data.allow_paths_outside_root": True}).with_absolute_paths().data
    if data.name in SUFFIXES and not options.split:
        return read_collection(unpack_images(data))
    if options.images not in DATASETS and not options.split:
        return read_collection(Path(options.images), root, data.ignore)
    table = read_table(data)
    root = None if data.name in ("icons", *SUFFIXES) else Path(data.root or Path(data.csv or "").parent)
    collection = make_collection(table, root)
    if options.split is None:
        return collection
    table = select_split(table, options.split)
    if table.empty:
        raise InputError(f"{options.images} has no {options.split} images", field="split")
    return make_collection(table, collection.root)
