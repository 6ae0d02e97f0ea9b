"""Tables as PyTorch data sets: augmented for training, in a fixed view for evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from orthoproxy.data.images import read_image, to_rgb
from orthoproxy.data.samplers import Draw
from orthoproxy.data.transforms import Transform
from orthoproxy.errors import InputError


class TrainingImages(Dataset):
    """Augmented images: from (row, seed), as `BatchSampler` draws them, to (pixels, class number).

    A view depends on the row and the seed alone, whichever worker makes it.

    Parameters
    ----------
    paths
        Image files.
    labels
        Class number of each.
    transform
        The augmentation; draws from torch's random state, which is seeded here.

    Examples
    --------
    >>> from orthoproxy.data.transforms import training_transform
    >>> len(TrainingImages(["a.png", "b.png"], [0, 1], training_transform(64)))
    2
    """

    def __init__(self, paths: Sequence[str], labels: Sequence[int], transform: Transform) -> None:
        self.paths, self.labels, self.transform = list(paths), list(labels), transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, draw: Draw) -> tuple[UInt8[Tensor, "3 H W"], int]:
        row, seed = draw
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the GPUs as well
            return self.transform(_read(self.paths[row])), self.labels[row]


class EvaluationImages(Dataset):
    """Images in a fixed view, in the order given: from row to pixels.

    Parameters
    ----------
    images
        Image files, or PIL images of any mode.
    transform
        The view.

    Examples
    --------
    >>> from orthoproxy.data.transforms import evaluation_transform
    >>> len(EvaluationImages(["a.png", "b.png"], evaluation_transform(64)))
    2
    """

    def __init__(self, images: Sequence[str | Path | Image.Image], transform: Transform) -> None:
        self.images, self.transform = list(images), transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> UInt8[Tensor, "3 H W"]:
        image = self.images[row]
        return self.transform(to_rgb(image) if isinstance(image, Image.Image) else _read(image))


def _read(path: str | Path) -> Image.Image:
    try:
        return read_image(path)
    except InputError as error:
        raise InputError(f"{error}\nreplace the file or leave it out") from error
