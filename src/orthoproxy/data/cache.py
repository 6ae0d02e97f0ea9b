"""Cache of resized images as raw pixels, so that training need not decode and resize them again.

Each image has a file of its own, named by a hash of what it was made from. Files are written whole and never deleted,
so any number of processes and runs can share a folder.
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

    def __init__(self, copies: _Copies) -> None:
        self.copies = copies

    def __len__(self) -> int:
        return len(self.copies)

    @overload
    def __getitem__(self, row: int) -> CroppableImage: ...
    @overload
    def __getitem__(self, row: slice) -> CachedImages: ...
    def __getitem__(self, row: int | slice) -> CroppableImage | CachedImages:
        if isinstance(row, slice):
            return CachedImages(self.copies.select(range(*row.indices(len(self)))))
        return self.copies.read(row)


def cached_images(paths: Sequence[str | Path], folder: str | Path, size: Size, workers: int = 0) -> CachedImages:
    """Return resized copies of images, in their order, from a cache folder, after making those that are missing.

    A copy has the shorter side `size`, or that height and width (see `evaluation_size`), and takes 3 bytes a pixel; a
    smaller image is kept as it is. It belongs to a file's path, size and modification time, so a file that changes gets
    another copy. A second process waits for the one that is making copies. If interrupted, the next call continues.
    Raises InputError if an image cannot be read, or the folder cannot be written to.
    """
    folder = Path(folder) / f"v{FORMAT}-{size if isinstance(size, int) else 'x'.join(map(str, size))}"
    copies = _Copies(folder, np.array([file_key(path) for path in paths], dtype="S32"), PathList(paths), size)
    with os_errors_as_input_errors(folder, "run it again"):
        if copies.missing_rows():
            folder.mkdir(parents=True, exist_ok=True)
            with FileLock(folder / "lock"):
                _make_copies(copies.select(copies.missing_rows()), workers)  # another process may have made some
    return CachedImages(copies)


def file_key(path: str | Path) -> bytes:
    """Hash a file's path, size and modification time to 32 hexadecimal digits, without reading it."""
    try:
        stat = Path(path).stat()
    except OSError as error:
        raise UnreadableImageError(error.strerror or str(error), path=path, hint=REPLACE_FILE) from error
    text = f"{Path(path).absolute()}\0{stat.st_size}\0{stat.st_mtime_ns}"
    return hashlib.blake2b(os.fsencode(text), digest_size=16).hexdigest().encode()


class _Copies(Dataset):
    """Resized copies of image files; to get an item makes it, and returns None or the error."""

    def __init__(self, folder: Path, keys: Shaped[np.ndarray, " N"], paths: PathList, size: Size) -> None:
        self.folder, self.keys, self.paths, self.size = folder, keys, paths, size

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, row: int) -> InputError | None:
        try:
            return self.make(row)
        except InputError as error:
            return error

    def select(self, rows: Sequence[int]) -> _Copies:
        paths = PathList([self.paths[row] for row in rows])
        return _Copies(self.folder, self.keys[list(rows)], paths, self.size)

    def missing_rows(self) -> list[int]:
        """Return the first row of each key without a copy; to list the folder is faster than to look for each file."""
        present = np.array([path.name for path in self.folder.glob("??/*")], dtype="S32")
        distinct, first = np.unique(self.keys, return_index=True)
        return np.sort(first[~np.isin(distinct, present)]).tolist()

    def file(self, row: int) -> Path:
        key = self.keys[row].decode()
        return self.folder / key[:2] / key

    def make(self, row: int) -> None:
        if file_key(self.paths[row]) != self.keys[row]:
            hint = "start again, so that the new file is read"
            raise UnreadableImageError("changed while it was in use", path=self.paths[row], hint=hint)
        image = read_image(self.paths[row])
        width, height = image.size
        if _copy_area(width, height, self.size) < width * height:
            image = resizing(self.size)(image)
        header = np.array([image.height, image.width, height, width], "<i4")
        with os_errors_as_input_errors(self.folder, "run it again"):
            _write(self.file(row), header.tobytes() + image.tobytes())

    def read(self, row: int) -> CroppableImage:
        try:
            return _read(self.file(row))
        except OSError as error:  # it may pass, so the file stays
            raise InputError(error.strerror or str(error), path=self.file(row)) from error
        except ValueError:  # cut short, as by a power failure
            self.make(row)
            return _read(self.file(row))


def _make_copies(copies: _Copies, workers: int) -> None:
    loader = DataLoader(copies, batch_size=16, **loader_options(workers, collate_fn=len))
    with Progress("cache images", len(copies)) as progress:
        for count in iterate_batches(loader):
            progress.advance(count, unit="images")


def _read(path: Path) -> CroppableImage:
    content = np.fromfile(path, np.uint8)
    rows, columns, height, width = content[:HEADER].view("<i4").tolist()
    return CroppableImage(content[HEADER:].reshape(rows, columns, 3), width=width, height=height)


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
