"""Augmentation of training images."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

if TYPE_CHECKING:
    from torchvision.transforms import v2


def training_transform(
    image_size: int,
    crop_scale: tuple[float, float] = (0.2, 1.0),
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3),
    flip: float = 0.5,
    jitter: float = 0.0,
    grayscale: float = 0.0,
) -> Augmentation:
    """Return the training augmentation: torchvision's `RandomResizedCrop`, bicubic, and a horizontal flip.

    Crops are resized by PyTorch's kernel for uint8, several times as fast as Pillow's; pixels differ from Pillow's by
    at most 0.2 of 255 on average.

    Parameters
    ----------
    image_size
        Side of the output in pixels.
    crop_scale
        Smallest and largest fraction of the image's area that a crop covers.
    crop_ratio
        Smallest and largest aspect ratio of a crop, width / height.
    flip
        Probability of a flip; 0 if left and right have a meaning.
    jitter
        Largest relative change of brightness, contrast and saturation; 0 for none.
    grayscale
        Probability of conversion to gray; above 0 if images of a class differ in color.

    Returns
    -------
    Augmentation
        Maps an RGB image, or its pixels as an array, to uint8 pixels; draws from PyTorch's random state. The crop
        depends on that state and the image's size alone, not on the other options.

    Examples
    --------
    >>> training_transform(64)(Image.new("RGB", (100, 80))).shape
    torch.Size([3, 64, 64])
    """
    from torchvision.transforms import v2  # takes a second or more, and only training needs it

    color: list[Callable] = []
    if jitter:
        color.append(v2.ColorJitter(brightness=jitter, contrast=jitter, saturation=jitter))
    if grayscale:
        color.append(v2.RandomGrayscale(grayscale))
    return Augmentation(image_size, v2.RandomResizedCrop(image_size, crop_scale, crop_ratio), flip, color)


class Augmentation:
    """What `training_transform` returns; a class, so that workers can unpickle it."""

    def __init__(self, image_size: int, box: v2.RandomResizedCrop, flip: float, color: list[Callable]) -> None:
        self.size, self.box, self.flip, self.color = [image_size, image_size], box, flip, color

    def __call__(self, image: Image.Image | UInt8[np.ndarray, "h w 3"]) -> UInt8[Tensor, "3 H W"]:
        from torchvision.transforms import InterpolationMode, v2

        array = np.asarray(image)
        box = self.box.make_params([torch.empty((1, *array.shape[:2]), device="meta")])
        rows, columns = slice(box["top"], box["top"] + box["height"]), slice(box["left"], box["left"] + box["width"])
        flipped = bool(torch.rand(1) < self.flip)
        pixels = torch.from_numpy(array[rows, columns].copy()).permute(2, 0, 1)
        pixels = v2.functional.resize(pixels, self.size, InterpolationMode.BICUBIC, antialias=True)
        if self.color:
            pixels = self._change_color(pixels)
        pixels = pixels.contiguous()  # channels first; resize leaves them last
        return pixels.flip(-1) if flipped else pixels

    def _change_color(self, pixels: UInt8[Tensor, "3 H W"]) -> UInt8[Tensor, "3 H W"]:
        """Use Pillow, whose sums, unlike PyTorch's, do not depend on the number of threads."""
        image = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
        for step in self.color:
            image = step(image)
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)
