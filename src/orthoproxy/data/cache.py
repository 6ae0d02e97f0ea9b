"""Cache of resized images as raw pixels, so that training need not decode and resize them again.

Each image has a file of its own, named by a hash of what it was made from. Files are written whole and never changed or
deleted, so any number of processes and runs can share a folder.
"""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import overload

import numpy as np
from filelock import FileLock
from jaxtyping import Shaped
from torch.utils.data import DataLoader, Dataset

from orthoproxy.core.errors import InputError, os_errors_as_input_errors
from orthoproxy.core.progress import Progress
from orthoproxy.data.datasets import PathList
from orthoproxy.data.images import CroppableImage, read_image
from orthoproxy.data.loading import REPLACE_FILE, UnreadableImageError, iterate_batches, loader_options
from orthoproxy.data.transforms import resizing

FORMAT = 2  # of a file: rows and columns of the copy, height and width of the image, all as little-endian int32; pixels
HEADER = 16  # bytes
Size = int | tuple[int, int]


class CachedImages(Sequence[CroppableImage]):
    """Images of a cache, read on access; what `cached_images` returns."""

    def __init__(self, folder: Path, keys: Shaped[np.ndarray, " N"]) -> None:
        self.folder, self.keys = folder, keys

    def __len__(self) -> int:
        return len(self.keys)

    @overload
    def __getitem__(self, row: int) -> CroppableImage: ...
    @overload
    def __getitem__(self, row: slice) -> CachedImages: ...
    def __getitem__(self, row: int | slice) -> CroppableImage | CachedImages:
        if isinstance(row, slice):
            return CachedImages(self.folder, self.keys[row])
        path = _copy_path(self.folder, self.keys[row])
        try:
            content = np.fromfile(path, np.uint8)
            rows, columns, height, width = content[:HEADER].view("<i4").tolist()
            return CroppableImage(content[HEADER:].reshape(rows, columns, 3), width=width, height=height)
        except OSError as error:
            raise InputError(error.strerror or str(error), path=path) from error
        except ValueError as error:
            hint = "delete this file; the next run makes it again"
            raise InputError("damaged cache file", path=path, hint=hint) from error


def cached_images(paths: Sequence[str | Path], folder: str | Path, size: Size, workers: int = 0) -> CachedImages:
    """Return resized copies of images from a cache folder, creating those that are missing.

    The key of a copy is the path, size and modification time of its file.
    """
    folder = Path(folder) / f"v{FORMAT}-{size if isinstance(size, int) else 'x'.join(map(str, size))}"
    keys = np.array([file_key(path) for path in paths], dtype="S32")
    with os_errors_as_input_errors(folder, "run it again"):
        if _missing_rows(folder, keys):
            folder.mkdir(parents=True, exist_ok=True)
            with FileLock(folder / "lock"):
                _make_copies(folder, keys, paths, size, workers)
    return CachedImages(folder, keys)


def file_key(path: str | Path) -> bytes:
    """Hash a file's path, size and modification time to 32 hexadecimal digits, without reading it."""
    try:
        stat = Path(path).stat()
    except OSError as error:
        raise UnreadableImageError(error.strerror or str(error), path=path, hint=REPLACE_FILE) from error
    text = f"{Path(path).absolute()}\0{stat.st_size}\0{stat.st_mtime_ns}"
    return hashlib.blake2b(os.fsencode(text), digest_size=16).hexdigest().encode()


def _copy_path(folder: Path, key: bytes) -> Path:
    return folder / key[:2].decode() / key.decode()


def _missing_rows(folder: Path, keys: Shaped[np.ndarray, " N"]) -> list[int]:
    """Return the first row of each key without a copy; to list the folder is faster than to look for each file."""
    present = np.array([path.name for path in folder.glob("??/*")], dtype="S32")
    distinct, first = np.unique(keys, return_index=True)
    return np.sort(first[~np.isin(distinct, present)]).tolist()


def _make_copies(folder: Path, keys: np.ndarray, paths: Sequence[str | Path], size: Size, workers: int) -> None:
    rows = _missing_rows(folder, keys)  # again, as another process may have made them
    if not rows:
        return
    copies = _Copies(folder, keys[rows], [paths[row] for row in rows], size)
    loader = DataLoader(copies, batch_size=16, **loader_options(workers, collate_fn=len))
    with Progress("cache images", len(rows)) as progress:
        for count in iterate_batches(loader):
            progress.advance(count, unit="images")


class _Copies(Dataset):
    """Makes copies of image files; an item is None, or the error."""

    def __init__(self, folder: Path, keys: np.ndarray, paths: Sequence[str | Path], size: Size) -> None:
        self.folder, self.keys, self.paths, self.size = folder, keys, PathList(paths), size

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> InputError | None:
        try:
            image = read_image(self.paths[row])
            height, width = image.height, image.width
            if _copy_area(width, height, self.size) < width * height:
                image = resizing(self.size)(image)
            header = np.array([image.height, image.width, height, width], "<i4")
            with os_errors_as_input_errors(self.folder, "run it again"):
                _write(_copy_path(self.folder, self.keys[row]), header.tobytes() + image.tobytes())
        except InputError as error:
            return error
        return None


def _copy_area(width: int, height: int, size: Size) -> int:
    return size[0] * size[1] if isinstance(size, tuple) else size * size * max(width, height) // min(width, height)


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(exist_ok=True)
    unfinished = path.with_name(f"{uuid.uuid4().hex}.tmp")
    try:
        unfinished.write_bytes(content)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
