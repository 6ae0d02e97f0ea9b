"""Embed image files, and collections of them: by any number of processes, kept where the work stops."""

from __future__ import annotations

import hashlib
import itertools
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from orthoproxy.core.distributed import broadcast_object, is_main, process_count, process_index, raise_together
from orthoproxy.core.errors import InputError
from orthoproxy.core.files import exclusive
from orthoproxy.core.progress import Progress
from orthoproxy.data import Collection, read_image
from orthoproxy.data.loading import iterate_batches, loader_options
from orthoproxy.data.transforms import Transform
from orthoproxy.embedding.embedder import Embedder
from orthoproxy.embedding.onnx_embedder import OnnxEmbedder
from orthoproxy.embedding.parquet_store import begin, is_whole, list_unreadable, make_plan, write_part


@dataclass(frozen=True)
class EmbedResult:
    """What `embed_collection` did.

    Parameters
    ----------
    images
        Embedded by now, in all parts.
    made
        Images read this time, by all processes together.
    seconds
        Spent on them.
    unreadable
        One row an image that cannot be read: `path`, `part`, `reason`.

    Examples
    --------
    >>> EmbedResult(images=20, made=10, seconds=2.0, unreadable=pd.DataFrame(columns=["path", "part", "reason"])).rate
    5.0
    """

    images: int
    made: int
    seconds: float
    unreadable: pd.DataFrame

    @property
    def rate(self) -> float:
        """Images a second."""
        return self.made / max(self.seconds, 1e-9)


def embed_collection(
    embedder: Embedder | OnnxEmbedder,
    model_path: str,
    collection: Collection,
    out: str | Path,
    batch_size: int = 128,
    workers: int = 0,
    part_size: int = 10_000,
) -> EmbedResult:
    """Embed a collection into a folder of Parquet parts, or go on where that was stopped.

    Started by torchrun, the processes take the missing parts in turn; each calls this. A part is there whole or not at
    all. Its bits depend on its images and the batch size, not on the number of processes.

    Parameters
    ----------
    embedder
        From `load_model`.
    model_path
        Where it was loaded from; kept, to embed queries later.
    collection
        From `data.read_collection`.
    out
        The folder.
    batch_size
        Images that go through the encoder at once.
    workers
        Processes that read files, for each process that embeds.
    part_size
        Images of a part.

    Returns
    -------
    EmbedResult
        The same in every process, but for the seconds.

    Raises
    ------
    InputError
        If the folder holds embeddings of another model or of other images, or another job is writing to it, or no image
        can be read.

    Examples
    --------
    >>> import tempfile
    >>> from PIL import Image
    >>> from orthoproxy.data import read_collection
    >>> from orthoproxy.models import Encoder
    >>> from orthoproxy.embedding.parquet_store import read_parts
    >>> folder = Path(tempfile.mkdtemp())
    >>> (folder / "images").mkdir()
    >>> for colour in ("gold", "navy"):
    ...     Image.new("RGB", (40, 30), colour).save(folder / "images" / f"{colour}.png")
    >>> embedder = Embedder(Encoder("deit_tiny_patch16_224", embedding_dim=16, image_size=32))
    >>> embed_collection(embedder, "runs/x", read_collection(folder / "images"), folder / "embeddings").images
    2
    >>> for rows, embeddings in read_parts(folder / "embeddings"):
    ...     print(rows["path"].tolist(), embeddings.shape)
    ['gold.png', 'navy.png'] (2, 16)
    """
    for name, value, least in (("batch-size", batch_size, 1), ("part-size", part_size, 1), ("workers", workers, 0)):
        if value < least:
            raise InputError(f"--{name}: {value}; give {least} or more")
    out, plan = Path(out), make_plan(embedder, model_path, collection, part_size)
    parts = plan["parts"]
    with exclusive(out, "out"):
        with raise_together():
            if is_main():
                begin(out, plan)
        planned = broadcast_object(parts)
        with raise_together():
            if parts != planned:
                raise InputError(f"{collection.root}: not the same images in all processes; give all the same ones")
        missing = broadcast_object([n for n, part in enumerate(parts) if not is_whole(out, part)] if is_main() else [])
        start = time.monotonic()
        with raise_together():
            if is_main() and len(missing) < len(parts):
                print(f"{out}: {len(parts) - len(missing)} of {len(parts)} parts are there already", file=sys.stderr)
            own = missing[process_index() :: process_count()]
            for part, rows, embeddings in _embed_parts(embedder, plan, collection, own, batch_size, workers):
                write_part(out, plan, part, rows, embeddings)
        seconds = time.monotonic() - start
        unreadable = _unreadable_of_all(out, plan)
    if len(unreadable) == len(collection):
        first = unreadable.iloc[0]
        raise InputError(f"{collection.root}: no image can be read, beginning with {first['path']}: {first['reason']}")
    made = sum(parts[number]["images"] for number in missing)
    return EmbedResult(len(collection) - len(unreadable), made, seconds, unreadable)


def embed_files(
    embedder: Embedder | OnnxEmbedder,
    paths: Sequence[str | Path],
    batch_size: int = 128,
    workers: int = 0,
) -> tuple[Float[np.ndarray, "n D"], list[str], list[str]]:
    """Embed the files that can be read, and say of the others why not.

    Parameters
    ----------
    embedder
        From `load_model`.
    paths
        Image files, N of them.
    batch_size, workers
        As in `embed_collection`. A batch is of so many files, read or not.

    Returns
    -------
    embeddings
        Unit-length rows of the files that can be read, in their order.
    contents
        Of each of the N files the first 32 hexadecimal digits of its SHA-256; empty if it cannot be read.
    reasons
        Of each of the N files why it cannot be read; empty if it can.

    Examples
    --------
    >>> from orthoproxy.models import Encoder
    >>> embedder = Embedder(Encoder("deit_tiny_patch16_224", embedding_dim=16, image_size=32))
    >>> embeddings, contents, reasons = embed_files(embedder, ["nowhere.png"])
    >>> embeddings.shape, contents, reasons
    ((0, 16), [''], ['No such file or directory'])
    """
    batches = [list(paths[first : first + batch_size]) for first in range(0, len(paths), batch_size)]
    rows = [np.empty((0, embedder.embedding_dim), dtype=np.float32)]
    contents, reasons = [], []
    for embeddings, batch_contents, batch_reasons in _embed_batches(embedder, batches, workers):
        rows.append(embeddings)
        contents += batch_contents
        reasons += batch_reasons
    return np.concatenate(rows), contents, reasons


def _embed_parts(
    embedder: Embedder | OnnxEmbedder,
    plan: dict[str, Any],
    collection: Collection,
    own: Sequence[int],
    batch_size: int,
    workers: int,
) -> Iterator[tuple[dict[str, Any], pd.DataFrame, Float[np.ndarray, "n D"]]]:
    """Embed the images of some parts; yield each, with what `write_part` takes, as soon as it is complete."""

    def rows_of(number: int) -> pd.DataFrame:
        first = number * plan["part_size"]
        return collection.images.iloc[first : first + plan["parts"][number]["images"]]

    def batches() -> Iterator[list[str]]:
        for number in own:
            paths = [f"{collection.root}/{path}" for path in rows_of(number)["path"]]
            yield from (paths[first : first + batch_size] for first in range(0, len(paths), batch_size))

    embedded = _embed_batches(embedder, batches(), workers)
    with Progress("embed", sum(plan["parts"][number]["images"] for number in own)) as progress:
        for number in own:
            part, done = plan["parts"][number], []
            for batch in itertools.islice(embedded, -(-part["images"] // batch_size)):
                done.append(batch)
                progress.advance(len(batch[1]), unit="images")
            embeddings, contents, reasons = zip(*done, strict=True)
            rows = rows_of(number).assign(content=[*itertools.chain(*contents)], reason=[*itertools.chain(*reasons)])
            yield part, rows, np.concatenate(embeddings)


def _unreadable_of_all(out: Path, plan: dict[str, Any]) -> pd.DataFrame:
    """The images that could not be read, in every process; the main one writes them down."""
    unreadable = None
    with raise_together():
        if is_main():
            unreadable = list_unreadable(out, plan)
    unreadable = broadcast_object(unreadable)
    assert unreadable is not None
    return unreadable


def _embed_batches(
    embedder: Embedder | OnnxEmbedder, batches: Iterable[list[Any]], workers: int
) -> Iterator[tuple[Float[np.ndarray, "n D"], list[str], list[str]]]:
    """Embed batches of files, the next ones read meanwhile; see `embed_files` for what comes of each."""
    files, options = _Files(embedder.transform), loader_options(workers, _collate)
    loader = DataLoader(files, batch_sampler=batches, **options)
    for pixels, contents, reasons in iterate_batches(loader):
        if pixels is None:
            yield np.empty((0, embedder.embedding_dim), dtype=np.float32), contents, reasons
        else:
            yield embedder.embed(pixels, batch_size=len(pixels)), contents, reasons


def content_of(path: str | Path) -> str:
    """Hash what a file holds: 16 bytes of its SHA-256, as hex.

    Parameters
    ----------
    path
        Of the file.

    Raises
    ------
    OSError
        If it cannot be read.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "words.txt"
    >>> path.write_text("words")
    5
    >>> content_of(path)
    'dba36bffa5cab0f922d087a3aeb179f9'
    """
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:32]


File = tuple[UInt8[Tensor, "3 H W"] | None, str, str]


class _Files(Dataset):
    """From path to pixels, content and why the file cannot be read."""

    def __init__(self, transform: Transform) -> None:
        self.transform = transform

    def __getitem__(self, path: str | Path) -> File:
        try:
            str(path).encode()  # Parquet holds text
            pixels = self.transform(read_image(path))
            return pixels, content_of(path), ""
        except UnicodeEncodeError:
            return None, "", "its name is not UTF-8; rename it"
        except InputError as error:
            return None, "", error.problem
        except Exception as error:  # of many types, whatever the damage makes Pillow trip over
            return None, "", f"{type(error).__name__}: {error}"


def _collate(files: list[File]) -> tuple[UInt8[Tensor, "b 3 H W"] | None, list[str], list[str]]:
    pixels = [pixels for pixels, _, _ in files if pixels is not None]
    contents, reasons = [content for _, content, _ in files], [reason for _, _, reason in files]
    return torch.stack(pixels) if pixels else None, contents, reasons
