"""PyTorch datasets to train on: augmented images, and features of a frozen backbone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int, Integer, UInt8
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from orthoproxy.core.errors import InputError
from orthoproxy.data.augmentation import Augmentation
from orthoproxy.data.evaluation_images import PathList
from orthoproxy.data.images import read_pixels
from orthoproxy.data.samplers import SampleSeed
from orthoproxy.data.table import integer_labels


class TrainingImages(Dataset):
    """Augmented images: maps (row, seed), as drawn by `BatchSampler`, to (pixels, class number).

    An augmented view depends on the row and the seed alone, whichever worker makes it. An image that cannot be read is
    returned as its `InputError`, which `iterate_batches` raises.

    Parameters
    ----------
    files
        Image files.
    labels
        Class number of each, of any integer type.
    transform
        From `training_transform`, or any function from an RGB image to uint8 pixels, a tensor or array; draws from
        PyTorch's random state, which is seeded here.
    box_margin
        Share of the size of an image's box that is added on each side, where it has one.

    Examples
    --------
    >>> from orthoproxy.data import training_transform
    >>> len(TrainingImages(["a.png", "b.png"], [0, 1], training_transform(64)))
    2
    """

    def __init__(
        self,
        files: Sequence[str | Path],
        labels: Sequence[int] | Integer[np.ndarray, " N"],
        transform: Augmentation | Callable[[Image.Image], UInt8[Tensor | np.ndarray, "3 H W"]],
        box_margin: float = 0.0,
    ) -> None:
        self.files, self.labels, self.transform = PathList(files), integer_labels(labels), transform
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
                pixels = torch.as_tensor(self.transform(Image.fromarray(image)))
        return pixels, int(self.labels[row])


class TrainingFeatures(Dataset):
    """Maps (row, seed) to (features, class number), for a frozen backbone; `files` name the images in errors."""

    def __init__(
        self,
        features: Float[Tensor, "N F"],
        labels: Sequence[int] | Integer[np.ndarray, " N"],
        files: Sequence[str] | None = None,
    ) -> None:
        self.features, self.labels, self.files = features, torch.as_tensor(integer_labels(labels)), files

    def __len__(self) -> int:
        return len(self.features)

    def __getitems__(self, samples: list[SampleSeed]) -> tuple[Float[Tensor, "B F"], Int[Tensor, " B"]]:
        rows = torch.tensor([row for row, _ in samples])
        return self.features[rows], self.labels[rows]
