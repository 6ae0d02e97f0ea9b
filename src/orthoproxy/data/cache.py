"""Smaller copies of images, made once and kept as pixels in a file, so that training need not decode them again.

A folder holds one pair of files for each size of the copies: ``pixels.bin``, one copy after the other, and
``index.npy``, which says where the copy of which file lies. Copies are only ever added, and the index is written
after the pixels, whole or not at all. So what it names is complete whenever it is read.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from filelock import FileLock, Timeout
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from orthoproxy.core.errors import InputError
from orthoproxy.core.files import atomic_write, flush
from orthoproxy.core.progress import Progress
from orthoproxy.core.safe_parsing import open_npy
from orthoproxy.data.datasets import read_or_replace
from orthoproxy.data.images import CroppableImage, read_image
from orthoproxy.data.read_timeout import watched, worker_options
from orthoproxy.data.transforms import resizing

FORMAT = 1  # of the two files
BATCH = 16  # images that a worker hands over at once
SAMPLE = 200  # images whose sizes tell beforehand how much space all will take
SAVE_EVERY = 30.0  # seconds whose work an interruption may cost
ENTRY = np.dtype(
    [("key", "S32"), ("start", "<i8"), ("rows", "<i4"), ("columns", "<i4"), ("height", "<i4"), ("width", "<i4")]
)
Size = int | tuple[int, int]


class CachedImages(Sequence[CroppableImage]):
    """Copies of images in a cache, read when they are asked for.

    Processes share the file's memory; a pickle holds no pixels.

    Parameters
    ----------
    file
        The pixels.
    entries
        Of the index, one a picture.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Image.new("RGB", (80, 60)).save(f"{folder}/a.png")
    ...     pictures = cached_images([f"{folder}/a.png"] * 3, f"{folder}/cache", size=30)
    ...     len(pictures), len(pictures[1:]), pictures[2].pixels.shape
    (3, 2, (30, 40, 3))
    """

    def __init__(self, file: Path, entries: np.ndarray) -> None:
        self.file, self.entries = file, entries

    def __len__(self) -> int:
        return len(self.entries)

    @overload
    def __getitem__(self, row: int) -> CroppableImage: ...
    @overload
    def __getitem__(self, row: slice) -> CachedImages: ...
    def __getitem__(self, row: int | slice) -> CroppableImage | CachedImages:
        if isinstance(row, slice):
            return CachedImages(self.file, self.entries[row])
        _, start, rows, columns, height, width = self.entries[row].item()
        pixels = self._pixels[start : start + rows * columns * 3].reshape(rows, columns, 3)
        return CroppableImage(pixels, width=width, height=height)

    @cached_property
    def _pixels(self) -> UInt8[np.ndarray, " bytes"]:
        return np.asarray(np.memmap(self.file, np.uint8, "r"))

    def __getstate__(self) -> dict[str, Any]:
        return {"file": self.file, "entries": self.entries}  # another process maps the file itself


def cached_images(paths: Sequence[str | Path], folder: str | Path, size: Size, workers: int = 0) -> CachedImages:
    """Return smaller copies of images from a folder, after making those that it does not have yet.

    A copy belongs to a file's path, length and time of change; a file that changes gets another copy. Several processes
    may use a folder at once: one makes the copies that are missing, the others wait. Interrupted, it goes on from where
    it was.

    Parameters
    ----------
    paths
        Image files.
    folder
        Of the cache; created. About 3 bytes a pixel of the copies.
    size
        Shorter side of the copies in pixels, or their height and width; see `evaluation_size`. An image that is smaller
        is kept as it is.
    workers
        Processes that read images; 0 for this one.

    Returns
    -------
    CachedImages
        One picture a path, in their order.

    Raises
    ------
    InputError
        If an image cannot be read, the folder cannot be written to, or it lacks the space.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Image.new("RGB", (80, 60)).save(f"{folder}/a.png")
    ...     picture = cached_images([f"{folder}/a.png"], f"{folder}/cache", size=30)[0]
    ...     picture.pixels.shape, (picture.width, picture.height)
    ((30, 40, 3), (80, 60))
    """
    keys, store = [file_key(path) for path in paths], _Store(Path(folder) / _name(size))
    try:
        if not store.rows.keys() >= set(keys):
            with store.alone():
                _fill(store, dict(zip(keys, paths, strict=True)), size, workers)
    except OSError as error:
        raise InputError(
            f"data.cache: cannot write to {folder}: {error.strerror or error}; free some space, or give another folder"
        ) from error
    return CachedImages(store.file, store.entries[[store.rows[key] for key in keys]])


def file_key(path: str | Path) -> bytes:
    """Tell an image file from others, and from what it held before, by path, size and time of change.

    To read all files would take too long.

    Parameters
    ----------
    path
        The file.

    Returns
    -------
    bytes
        32 hexadecimal digits.

    Raises
    ------
    InputError
        If there is no such file.

    Examples
    --------
    >>> len(file_key(__file__))
    32
    """
    try:
        stat = Path(path).stat()
    except OSError as error:
        raise InputError(f"cannot read the image {path}: {error.strerror}\nreplace the file or leave it out") from error
    text = f"{Path(path).absolute()}\0{stat.st_size}\0{stat.st_mtime_ns}"
    return hashlib.blake2b(text.encode(errors="surrogateescape"), digest_size=16).hexdigest().encode()


def _name(size: Size) -> str:
    return f"v{FORMAT}-{size}" if isinstance(size, int) else f"v{FORMAT}-{size[0]}x{size[1]}"


def _fill(store: _Store, files: dict[bytes, str | Path], size: Size, workers: int) -> None:
    missing = {key: path for key, path in files.items() if key not in store.rows}
    keys, paths = iter(missing), list(missing.values())
    if not paths:  # another process has made them
        return
    _require_space(store.folder, paths, size)
    loader = DataLoader(_Smaller(paths, size), BATCH, collate_fn=_end_to_end, **worker_options(workers))
    with store.open(), Progress("fill the cache", len(paths)) as progress:
        for pixels, shapes in watched(loader):
            store.add(pixels.numpy(), [(next(keys), *shape) for shape in shapes])
            progress.advance(len(shapes), unit="images")


class _Smaller(Dataset):
    """Copies of image files: pixels, and height and width of the image itself."""

    def __init__(self, paths: Sequence[str | Path], size: Size) -> None:
        self.paths, self.size, self.resize = paths, size, resizing(size)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> tuple[UInt8[np.ndarray, "h w 3"], int, int]:
        image = read_or_replace(read_image, self.paths[row])
        copy = self.resize(image) if _copy_area(*image.size, self.size) < image.width * image.height else image
        return np.asarray(copy), image.height, image.width


def _copy_area(width: int, height: int, size: Size) -> int:
    """About how many pixels a copy has."""
    area = size[0] * size[1] if isinstance(size, tuple) else size * size * max(width, height) // min(width, height)
    return min(area, width * height)


def _end_to_end(copies: list[tuple[np.ndarray, int, int]]) -> tuple[UInt8[Tensor, " bytes"], list[tuple[int, ...]]]:
    """Put copies into one tensor, so that a worker hands over one piece of memory."""
    pixels = np.concatenate([copy.reshape(-1) for copy, _, _ in copies])
    return torch.from_numpy(pixels), [(*copy.shape[:2], height, width) for copy, height, width in copies]


def _require_space(folder: Path, paths: Sequence[str | Path], size: Size) -> None:
    """Find out from the sizes of some images whether all will fit, before hours of work."""
    areas = []
    for path in paths[:: -(-len(paths) // SAMPLE)]:
        with contextlib.suppress(Exception), Image.open(path) as image:  # what cannot be read is told when it is read
            areas.append(_copy_area(*image.size, size))
    needed, free = 3 * sum(areas) / max(1, len(areas)) * len(paths), shutil.disk_usage(folder).free
    if needed > free:
        raise InputError(
            f"data.cache: {len(paths)} images take about {needed / 1e9:.1f} GB; {folder} has {free / 1e9:.1f} GB left"
            "\nfree some space, give another folder or a smaller data.cache_size"
        )


class _Store:
    """The two files of a cache; what others add is seen when the index is read again."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.file, self.index = folder, folder / "pixels.bin", folder / "index.npy"
        self.read()

    def read(self) -> None:
        """Read the index; one that is damaged is as good as none, and what it names must be there."""
        try:
            entries, length = open_npy(self.index).astype(ENTRY, casting="no"), self.file.stat().st_size
            self.entries = entries[_is_sound(entries, length)]
        except (OSError, ValueError, TypeError, IndexError):
            self.entries = np.empty(0, ENTRY)
        self.rows = {key: row for row, key in enumerate(self.entries["key"].tolist())}

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other processes from adding."""
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder / "lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            print(f"data.cache: another process is filling {self.folder}; waiting", file=sys.stderr)
            lock.acquire()
        try:
            self.read()
            yield
        finally:
            lock.release()

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """Open for adding, and name in the index what was added whole; the rest is cut off."""
        if not len(self.entries):
            self.file.unlink(missing_ok=True)  # not cut to nothing, as others may still read it
        self.file.touch()
        try:
            with self.file.open("r+b") as self._output:
                self._cut_off()
                self._added, self._saved_at = [], time.monotonic()
                self._end = self._output.seek(0, os.SEEK_END)
                try:
                    yield
                finally:
                    self._save()
        except OSError:
            self.read()
            self._cut_off()
            raise

    def _cut_off(self) -> None:
        """Remove what no entry names; where others read, Windows does not allow it, and then it stays."""
        end = int((self.entries["start"] + _lengths(self.entries)).max(initial=0))
        with contextlib.suppress(OSError):
            os.truncate(self.file, end)

    def add(self, pixels: np.ndarray, shapes: Sequence[tuple[bytes, int, int, int, int]]) -> None:
        self._output.write(pixels.data)
        for key, rows, columns, height, width in shapes:
            self._added.append((key, self._end, rows, columns, height, width))
            self._end += 3 * rows * columns
        if time.monotonic() - self._saved_at > SAVE_EVERY:
            self._save()

    def _save(self) -> None:
        flush(self._output)  # else a power cut might keep the index without the pixels
        entries = np.concatenate([self.entries, np.array(self._added, ENTRY)])
        atomic_write(self.index, lambda file: np.save(file, entries))
        self.entries, self._added, self._saved_at = entries, [], time.monotonic()
        self.rows = {key: row for row, key in enumerate(entries["key"].tolist())}


def _is_sound(entries: np.ndarray, length: int) -> np.ndarray:
    """Which entries are of pixels that the file has; in floating point, where large numbers do not wrap around."""
    numbers = {name: entries[name].astype(np.float64) for name in ENTRY.names or () if name != "key"}
    there = numbers["start"] + 3 * numbers["rows"] * numbers["columns"] <= length
    return there & np.all([x >= (name != "start") for name, x in numbers.items()], axis=0)


def _lengths(entries: np.ndarray) -> np.ndarray:
    return 3 * entries["rows"].astype(np.int64) * entries["columns"]
