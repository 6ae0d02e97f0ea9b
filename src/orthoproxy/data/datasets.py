"""PyTorch datasets: augmented images for training, images in the evaluation transform, and frozen features."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from orthoproxy.core.errors import InputError
from orthoproxy.data.images import read_image, read_pixels, to_rgb
from orthoproxy.data.samplers import SampleSeed
from orthoproxy.data.transforms import Augmentation, Transform


class TrainingImages(Dataset):
    """Augmented images: maps (row, seed), as drawn by `BatchSampler`, to (pixels, class number).

    An augmented view depends on the row and the seed alone, whichever worker makes it. An image that cannot be read is
    returned as its `InputError`, which `iterate_batches` raises.

    Parameters
    ----------
    files
        Image files.
    labels
        Class number of each.
    transform
        From `training_transform`, or any function from an RGB image to uint8 pixels; draws from PyTorch's random state,
        which is seeded here.
    box_margin
        Share of the size of an image's box that is added on each side, where it has one.

    Examples
    --------
    >>> from orthoproxy.data.transforms import training_transform
    >>> len(TrainingImages(["a.png", "b.png"], [0, 1], training_transform(64)))
    2
    """

    def __init__(
        self,
        files: Sequence[str | Path],
        labels: Sequence[int] | Int[np.ndarray, " N"],
        transform: Augmentation | Transform,
        box_margin: float = 0.0,
    ) -> None:
        self.files, self.labels, self.transform = PathList(files), np.asarray(labels), transform
        self.box_margin = box_margin

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, sample: SampleSeed) -> tuple[UInt8[Tensor, "3 H W"], int] | InputError:
        row, seed = sample
        try:
            image = read_pixels(self.files[row], self.box_margin)
        except InputError as error:
            return error
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the GPUs as well
            if isinstance(self.transform, Augmentation):
                pixels = self.transform(image)
            else:
                pixels = self.transform(Image.fromarray(image))
        return pixels, int(self.labels[row])


class TrainingFeatures(Dataset):
    """Features in place of images, for a frozen backbone: maps (row, seed) to (features, class number).

    A batch is read at once; the seeds have no effect. `files` are names of the images for error messages.
    """

    def __init__(
        self,
        features: Float[Tensor, "N F"],
        labels: Sequence[int] | Int[np.ndarray, " N"],
        files: Sequence[str] | None = None,
    ) -> None:
        self.features, self.labels, self.files = features, torch.as_tensor(np.asarray(labels)), files

    def __len__(self) -> int:
        return len(self.features)

    def __getitems__(self, samples: list[SampleSeed]) -> tuple[Float[Tensor, "B F"], Int[Tensor, " B"]]:
        rows = torch.tensor([row for row, _ in samples])
        return self.features[rows], self.labels[rows]


class EvaluationImages(Dataset):
    """Images in a fixed transform, in the order given: maps a row to pixels.

    `images` are files, PIL images of any mode, or arrays of RGB pixels. An image that cannot be read is returned as its
    `InputError`, which `iterate_batches` raises.
    """

    def __init__(self, images: Sequence[Any] | np.ndarray, transform: Transform) -> None:
        self.images, self.transform = _shareable(images), transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> UInt8[Tensor, "3 H W"] | InputError:
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


def _shareable(images: Sequence[Any] | np.ndarray) -> Sequence[Any] | np.ndarray | PathList:
    if not isinstance(images, list | tuple):
        return images
    paths = [image for image in images if isinstance(image, str | Path)]
    return PathList(paths) if len(paths) == len(images) else images
