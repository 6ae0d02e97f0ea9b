"""Embed collections of image files into Parquet parts, in any number of processes, resumably."""

from __future__ import annotations

import hashlib
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from orthoproxy.core.boxes import split_box
from orthoproxy.core.distributed import broadcast_object, is_main, process_count, process_index, raise_together
from orthoproxy.core.errors import InputError
from orthoproxy.core.folder_lock import folder_lock
from orthoproxy.core.progress import Progress
from orthoproxy.data.images import read_image, read_image_bytes
from orthoproxy.data.loading import iterate_batches, loader_options
from orthoproxy.data.sources.collection import Collection
from orthoproxy.data.transforms import ResizeAndCrop
from orthoproxy.embedding.batches import EmbeddedFiles, File
from orthoproxy.embedding.onnx_embedder import AnyEmbedder
from orthoproxy.embedding.parquet_store import EmbeddingMeta, begin, is_complete, write_part, write_unreadable


@dataclass(frozen=True)
class EmbedResult:
    """Result of `embed_collection`, and its duration."""

    images: int  # embedded in the folder
    new_images: int  # of the parts that this call wrote, unreadable ones included
    seconds: float
    unreadable: pd.DataFrame  # path, part, reason


def embed_collection(
    embedder: AnyEmbedder,
    model_path: str,
    collection: Collection,
    out: str | Path,
    batch_size: int = 128,
    workers: int = 0,
    part_size: int = 10_000,
) -> EmbedResult:
    """Embed a collection into a folder of Parquet parts; an interrupted call is continued by the next one.

    In a distributed job every process must call it; the parts are divided among the processes. Results depend on the
    images and the batch size, not on the number of processes. Raises InputError if the folder holds embeddings of
    another model or of other images, another job is writing to it, or no image can be read.

    Parameters
    ----------
    embedder, model_path
        From `load_model`, and where it was loaded from; stored, to embed queries later.
    collection
        From `data.read_collection`.
    out
        Folder.
    batch_size, part_size
        Images per forward pass and per part.
    workers
        Data loading processes, per process.

    Examples
    --------
    >>> import tempfile
    >>> from PIL import Image
    >>> from orthoproxy.data import read_collection
    >>> from orthoproxy.models import Encoder
    >>> from orthoproxy.embedding.embedder import Embedder
    >>> from orthoproxy.embedding.parquet_store import read_parts
    >>> folder = Path(tempfile.mkdtemp())
    >>> (folder / "images").mkdir()
    >>> for color in ("gold", "navy"):
    ...     Image.new("RGB", (40, 30), color).save(folder / "images" / f"{color}.png")
    >>> embedder = Embedder(Encoder("deit_tiny_patch16_224", embedding_dim=16, image_size=32))
    >>> embed_collection(embedder, "runs/x", read_collection(folder / "images"), folder / "embeddings").images
    2
    >>> for rows, embeddings in read_parts(folder / "embeddings"):
    ...     print(rows["path"].tolist(), embeddings.shape)
    ['gold.png', 'navy.png'] (2, 16)
    """
    for name, value, minimum in (("batch_size", batch_size, 1), ("part_size", part_size, 1), ("workers", workers, 0)):
        if value < minimum:
            raise InputError(str(value), field=name, expected=f"at least {minimum}")
    out, plan, start = Path(out), EmbeddingMeta.plan(embedder, model_path, collection, part_size), time.monotonic()
    with folder_lock(out, "out"):
        missing: list[int] = []
        with raise_together():
            if is_main():
                begin(out, plan)
                missing = [number for number, part in enumerate(plan.parts) if not is_complete(out, part)]
                if complete := len(plan.parts) - len(missing):
                    print(f"{out}: {complete} of {len(plan.parts)} parts exist already", file=sys.stderr)
        missing, parts = broadcast_object((missing, plan.parts))
        with raise_together():
            if parts != plan.parts:
                raise InputError("the processes see different images", path=collection.root)
        with raise_together():
            own = missing[process_index() :: process_count()]
            tables = [collection.images.iloc[number * part_size :][:part_size] for number in own]
            files = ([File(f"{collection.root}/{path}") for path in table["path"]] for table in tables)
            with Progress("embed", sum(map(len, tables))) as progress:
                embedded = embed_files(embedder, files, batch_size, workers, progress)
                for number, table, (embeddings, contents, reasons) in zip(own, tables, embedded, strict=True):
                    rows = table.assign(content=contents, reason=reasons)
                    write_part(out, plan, plan.parts[number], rows, embeddings)
        with raise_together():
            unreadable = write_unreadable(out, plan) if is_main() else None
        unreadable = broadcast_object(unreadable)
    assert unreadable is not None
    if len(unreadable) == len(collection):
        path, _, reason = unreadable.iloc[0]
        raise InputError(f"no image can be read; the first one: {reason}", path=path)
    new_images = sum(plan.parts[number].images for number in missing)
    return EmbedResult(len(collection) - len(unreadable), new_images, time.monotonic() - start, unreadable)


def embed_files(
    embedder: AnyEmbedder, parts: Iterable[list[File]], batch_size: int, workers: int, progress: Progress
) -> Iterator[EmbeddedFiles]:
    """Embed parts of files, none empty; yield each when complete. Unreadable files get a reason; reading runs ahead."""
    sizes = deque[int]()  # of parts whose batches the loader has asked for

    def batches() -> Iterator[list[File]]:
        for part in parts:
            sizes.append(len(part))
            yield from (part[first : first + batch_size] for first in range(0, len(part), batch_size))

    loader = DataLoader(
        _Files(embedder.transform),
        batch_sampler=batches(),
        generator=torch.Generator(),  # or the loader draws a seed from the caller's
        **loader_options(workers, _collate),
    )
    embeddings: list[Float[np.ndarray, "b D"]] = []
    contents: list[str] = []
    reasons: list[str] = []
    for pixels, some_contents, some_reasons in iterate_batches(loader):
        embeddings.append(embedder.embed(pixels, batch_size))
        contents += some_contents
        reasons += some_reasons
        progress.advance(len(some_contents), unit="images")
        if len(contents) == sizes[0]:
            yield EmbeddedFiles(np.concatenate(embeddings), contents, reasons)
            sizes.popleft()
            embeddings, contents, reasons = [], [], []


class _Files(Dataset):
    """Maps a `File` to its pixels (None if unreadable or known), content hash and reason for being unreadable."""

    def __init__(self, transform: ResizeAndCrop) -> None:
        self.transform = transform

    def __getitem__(self, file: File) -> tuple[UInt8[np.ndarray, "3 H W"] | None, str, str]:
        try:
            data = read_image_bytes(file.path)
            digest = hashlib.sha256(data)
            digest.update(str(split_box(file.path)[1] or "").encode())
            content = digest.hexdigest()[:32]
            pixels = None if content == file.known_content else self.transform(read_image(file.path, data))
            return pixels, content, ""
        except InputError as error:
            return None, "", error.problem


def _collate(
    files: list[tuple[UInt8[np.ndarray, "3 H W"] | None, str, str]],
) -> tuple[UInt8[Tensor, "b 3 H W"] | list[Any], list[str], list[str]]:
    pixels = [pixels for pixels, _, _ in files if pixels is not None]
    contents, reasons = [content for _, content, _ in files], [reason for _, _, reason in files]
    return torch.from_numpy(np.stack(pixels)) if pixels else [], contents, reasons
