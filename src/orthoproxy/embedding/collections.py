"""Embed collections of image files into Parquet parts, in any number of processes, resumably."""

from __future__ import annotations

import hashlib
import itertools
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

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
from orthoproxy.embedding.parquet_store import EmbeddingMeta, Part, begin, is_complete, write_part, write_unreadable


@dataclass(frozen=True)
class EmbedResult:
    """Result of `embed_collection`: images so far, images read by this call, its duration, and unreadable images."""

    images: int
    new_images: int
    seconds: float
    unreadable: pd.DataFrame  # path, part, reason

    @property
    def rate(self) -> float:
        """Images per second."""
        return self.new_images / max(self.seconds, 1e-9)


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
            for part, rows, embeddings in _embed_parts(embedder, plan, collection, own, batch_size, workers):
                write_part(out, plan, part, rows, embeddings)
        with raise_together():
            unreadable = write_unreadable(out, plan) if is_main() else None
        unreadable = broadcast_object(unreadable)
    assert unreadable is not None
    if len(unreadable) == len(collection):
        path, _, reason = unreadable.iloc[0]
        raise InputError(f"no image can be read; the first one: {reason}", path=path)
    new_images = sum(plan.parts[number].images for number in missing)
    return EmbedResult(len(collection) - len(unreadable), new_images, time.monotonic() - start, unreadable)


def _embed_parts(
    embedder: AnyEmbedder,
    plan: EmbeddingMeta,
    collection: Collection,
    numbers: Sequence[int],
    batch_size: int,
    workers: int,
) -> Iterator[tuple[Part, pd.DataFrame, Float[np.ndarray, "n D"]]]:
    """Yield each of these parts, its rows and embeddings, as soon as it is complete; the loader runs ahead."""

    def rows(number: int) -> pd.DataFrame:
        return collection.images.iloc[number * plan.part_size :][: plan.part_size]

    def batches() -> Iterator[list[File]]:
        for number in numbers:
            files = [File(f"{collection.root}/{path}") for path in rows(number)["path"]]
            yield from (files[first : first + batch_size] for first in range(0, len(files), batch_size))

    embedded = embed_files(embedder, batches(), workers)
    with Progress("embed", sum(plan.parts[number].images for number in numbers)) as progress:
        for number in numbers:
            done: list[EmbeddedFiles] = []
            for batch in itertools.islice(embedded, -(-plan.parts[number].images // batch_size)):
                done.append(batch)
                progress.advance(len(batch.contents), unit="images")
            result = EmbeddedFiles.concatenate(done)
            columns = {"content": result.contents, "reason": result.reasons}
            yield plan.parts[number], rows(number).assign(**columns), result.embeddings


def embed_files(embedder: AnyEmbedder, batches: Iterable[list[File]], workers: int) -> Iterator[EmbeddedFiles]:
    """Embed batches of files that may be unreadable; each file is read once."""
    loader = DataLoader(_Files(embedder.transform), batch_sampler=batches, **loader_options(workers, _collate))
    for pixels, contents, reasons in iterate_batches(loader):
        embeddings = np.empty((0, embedder.embedding_dim), dtype=np.float32)
        if pixels is not None:
            embeddings = embedder.embed(pixels, batch_size=len(pixels))
        yield EmbeddedFiles(embeddings, contents, reasons)


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
) -> tuple[UInt8[Tensor, "b 3 H W"] | None, list[str], list[str]]:
    pixels = [pixels for pixels, _, _ in files if pixels is not None]
    contents, reasons = [content for _, content, _ in files], [reason for _, _, reason in files]
    return torch.from_numpy(np.stack(pixels)) if pixels else None, contents, reasons
