"""Images to evaluate or embed, and file names in compact arrays."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from orthoproxy.core.errors import InputError
from orthoproxy.data.images import read_image, to_rgb


class EvaluationImages:
    """A dataset of transformed images: row i is the pixels of image i.

    `images` are files, PIL images of any mode, or arrays of RGB pixels. An image that cannot be read is returned as its
    `InputError`, which `iterate_batches` raises.
    """

    def __init__(self, images: Sequence[Any] | np.ndarray, transform: Callable[[Image.Image], Any]) -> None:
        self.images, self.transform = images, transform
        if isinstance(images, list | tuple) and all(isinstance(image, str | Path) for image in images):
            self.images = PathList(images)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> Any:
        try:
            return self.transform(_open_image(self.images[row]))
        except InputError as error:
            return error


def _open_image(image: Any) -> Image.Image:
    if isinstance(image, str | Path):
        return read_image(image)
    if isinstance(image, Image.Image):
        return to_rgb(image)
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3:
        return Image.fromarray(image)
    shape = f" of {image.dtype} and shape {tuple(image.shape)}" if hasattr(image, "shape") else ""
    expected = "a path, a PIL image, or an array H x W x 3 of uint8"
    raise InputError(f"{type(image).__name__}{shape}", field="images", expected=expected)


class PathList:
    """File names in two arrays, which forked workers share; a list would be copied as its reference counts change."""

    def __init__(self, paths: Sequence[str | Path]) -> None:
        encoded = [os.fsencode(path) for path in paths]
        self._bytes = np.frombuffer(b"".join(encoded), np.uint8)
        self._ends = np.cumsum([0, *map(len, encoded)])

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, row: int) -> str:
        row = range(len(self))[row]
        return os.fsdecode(self._bytes[self._ends[row] : self._ends[row + 1]].tobytes())
