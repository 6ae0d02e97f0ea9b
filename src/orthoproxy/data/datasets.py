"""Tables as PyTorch data sets: augmented for training, in a fixed view for evaluation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from orthoproxy.core.errors import InputError
from orthoproxy.data.images import CroppableImage, read_croppable_image, read_image, to_rgb
from orthoproxy.data.samplers import SampleSeed
from orthoproxy.data.transforms import Augmentation, Transform

T = TypeVar("T")


class TrainingImages(Dataset):
    """Augmented images: from (row, seed), as `BatchSampler` draws them, to (pixels, class number).

    A view depends on the row and the seed alone, whichever worker makes it.

    Parameters
    ----------
    images
        Image files, or pictures such as `cached_images` returns.
    labels
        Class number of each.
    transform
        From `training_transform`, or another one from an RGB image to uint8 pixels; draws from torch's random state,
        which is seeded here.
    files
        What the images are called, where that is not what `images` has.

    Examples
    --------
    >>> from orthoproxy.data.transforms import training_transform
    >>> len(TrainingImages(["a.png", "b.png"], [0, 1], training_transform(64)))
    2
    """

    def __init__(
        self,
        images: Sequence[str | Path | CroppableImage],
        labels: Sequence[int],
        transform: Augmentation | Transform,
        files: Sequence[str] | None = None,
    ) -> None:
        self.images, self.labels, self.transform = images, list(labels), transform
        self.files = images if files is None else files

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, draw: SampleSeed) -> tuple[UInt8[Tensor, "3 H W"], int]:
        row, seed = draw
        image = self.images[row]
        picture = image if isinstance(image, CroppableImage) else read_or_replace(read_croppable_image, image)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the GPUs as well
            return self._view(picture), self.labels[row]

    def _view(self, picture: CroppableImage) -> UInt8[Tensor, "3 H W"]:
        if isinstance(self.transform, Augmentation):
            return self.transform(picture)
        return self.transform(Image.fromarray(picture.pixels))


class TrainingFeatures(Dataset):
    """Features in place of images, for a frozen backbone: from (row, seed) to (features, class number).

    Rows are taken many at a time; the seeds have no effect.

    Parameters
    ----------
    features
        N x F.
    labels
        Class number of each row.
    files
        What they are features of.

    Examples
    --------
    >>> features, labels = TrainingFeatures(torch.eye(3), [0, 1, 1]).__getitems__([(2, 7), (0, 8)])
    >>> features.argmax(dim=1).tolist(), labels.tolist()
    ([2, 0], [1, 0])
    """

    def __init__(
        self, features: Float[Tensor, "N F"], labels: Sequence[int], files: Sequence[str] | None = None
    ) -> None:
        self.features, self.labels, self.files = features, torch.tensor(labels), files

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, draw: SampleSeed) -> tuple[Float[Tensor, " F"], int]:
        row, _ = draw
        return self.features[row], int(self.labels[row])

    def __getitems__(self, draws: list[SampleSeed]) -> tuple[Float[Tensor, "B F"], Int[Tensor, " B"]]:
        rows = torch.tensor([row for row, _ in draws])
        return self.features[rows], self.labels[rows]


class EvaluationImages(Dataset):
    """Images in a fixed view, in the order given: from row to pixels.

    Parameters
    ----------
    images
        Image files, PIL images of any mode, or pictures such as `cached_images` returns.
    transform
        The view.

    Examples
    --------
    >>> from orthoproxy.data.transforms import evaluation_transform
    >>> len(EvaluationImages(["a.png", "b.png"], evaluation_transform(64)))
    2
    """

    def __init__(self, images: Sequence[str | Path | Image.Image | CroppableImage], transform: Transform) -> None:
        self.images, self.transform = images, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> UInt8[Tensor, "3 H W"]:
        image = self.images[row]
        if isinstance(image, CroppableImage):
            return self.transform(Image.fromarray(image.pixels))
        return self.transform(to_rgb(image) if isinstance(image, Image.Image) else read_or_replace(read_image, image))


def read_or_replace(reader: Callable[[str | Path], T], path: str | Path) -> T:
    """Read an image file; the error says what to do about one that cannot be read."""
    try:
        return reader(path)
    except InputError as error:
        raise InputError(f"{error}\nreplace the file or leave it out") from error
