"""What happens to an image between the file and the encoder, in training and in evaluation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from orthoproxy.core.errors import InputError
from orthoproxy.data.images import CroppableImage

Transform = Callable[[Image.Image], UInt8[Tensor, "3 H W"]]
Resize = int | Literal["squash"] | None


def training_transform(
    image_size: int,
    crop_scale: tuple[float, float] = (0.2, 1.0),
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3),
    flip: float = 0.5,
    jitter: float = 0.0,
    grayscale: float = 0.0,
) -> Augmentation:
    """Return the augmentation: a random crop resized to a square, bicubic, and a horizontal flip.

    The crops are those of torchvision's `RandomResizedCrop`. They are resized by PyTorch's kernel for bytes, several
    times as fast as Pillow's, whose pixels differ by 0.2 of 255 at most on average.

    Parameters
    ----------
    image_size
        Side of the output in pixels.
    crop_scale
        Least and greatest share of the image's area that a crop covers.
    crop_ratio
        Least and greatest width / height of a crop.
    flip
        Chance of a flip; 0 where left and right mean different things.
    jitter
        Greatest relative change of brightness, contrast and saturation; 0 for none.
    grayscale
        Chance that all colour is taken away; above 0 where things of a class differ in colour.

    Returns
    -------
    Augmentation
        From an RGB image or a `CroppableImage` to uint8 pixels; draws from torch's random state. Where the crop lies depends
        on that state and the image's size alone, not on the other options.

    Examples
    --------
    >>> training_transform(64)(Image.new("RGB", (100, 80))).shape
    torch.Size([3, 64, 64])
    """
    box = v2.RandomResizedCrop(image_size, crop_scale, crop_ratio)
    colour: list[Callable] = []
    if jitter:
        colour.append(v2.ColorJitter(brightness=jitter, contrast=jitter, saturation=jitter))
    if grayscale:
        colour.append(v2.RandomGrayscale(grayscale))
    return Augmentation(image_size, box, flip, colour)


class Augmentation:
    """What `training_transform` returns; a class, since workers may have to pickle it and `TrainingImages` tells it."""

    def __init__(self, image_size: int, box: v2.RandomResizedCrop, flip: float, colour: list[Callable]) -> None:
        self.size, self.box, self.flip, self.colour = [image_size, image_size], box, flip, colour

    def __call__(self, image: Image.Image | CroppableImage) -> UInt8[Tensor, "3 H W"]:
        if isinstance(image, Image.Image):
            image = CroppableImage(np.asarray(image), *image.size)
        shape = torch.empty((1, image.height, image.width), device="meta")
        crop = image.crop(**self.box.make_params([shape]))
        flipped = bool(torch.rand(1) < self.flip)
        pixels = torch.from_numpy(crop).permute(2, 0, 1)
        pixels = v2.functional.resize(pixels, self.size, InterpolationMode.BICUBIC, antialias=True)
        if self.colour:
            pixels = self._recoloured(pixels)
        pixels = pixels.contiguous()  # channels first, which resizing leaves last
        return pixels.flip(-1) if flipped else pixels

    def _recoloured(self, pixels: UInt8[Tensor, "3 H W"]) -> UInt8[Tensor, "3 H W"]:
        """Change the colours with Pillow, whose sums do not depend on the number of threads as PyTorch's may."""
        image = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
        for step in self.colour:
            image = step(image)
        return v2.functional.pil_to_tensor(image)


def evaluation_size(image_size: int, resize: Resize = None) -> int | tuple[int, int]:
    """Return what an image is resized to before the centre square is cut out of it.

    Parameters
    ----------
    image_size, resize
        As in `evaluation_transform`.

    Returns
    -------
    int or (int, int)
        The shorter side; or, with ``"squash"``, height and width.

    Examples
    --------
    >>> evaluation_size(224), evaluation_size(224, "squash")
    (256, (224, 224))
    """
    return (image_size, image_size) if resize == "squash" else resize or round(image_size * 256 / 224)


def evaluation_transform(image_size: int, resize: Resize = None) -> Transform:
    """Return the fixed view used to judge and to search: the centre square of an image, or all of it.

    Parameters
    ----------
    image_size
        Side of the output in pixels.
    resize
        Shorter side before the centre square is cut out, in pixels; None for ``image_size * 256 / 224``, the field's
        habit. With ``"squash"`` nothing is cut off: the whole image becomes the square, whatever its proportions.

    Returns
    -------
    Callable
        From an RGB image to uint8 pixels.

    Raises
    ------
    InputError
        If `resize` is below `image_size`.

    Examples
    --------
    >>> evaluation_transform(64)(Image.new("RGB", (100, 80))).shape
    torch.Size([3, 64, 64])
    """
    size = evaluation_size(image_size, resize)
    if isinstance(size, int) and size < image_size:
        raise InputError(f"data.resize: {size} is less than encoder.image_size {image_size}, which is cut out of it")
    return v2.Compose([resizing(size), v2.CenterCrop(image_size), v2.PILToTensor()])


def resizing(size: int | tuple[int, int]) -> Callable[[Image.Image], Image.Image]:
    """Return the first step of the fixed view: bicubic resizing.

    Parameters
    ----------
    size
        From `evaluation_size`.

    Examples
    --------
    >>> resizing(64)(Image.new("RGB", (100, 80))).size
    (80, 64)
    """
    return v2.Resize(list(size) if isinstance(size, tuple) else size, interpolation=InterpolationMode.BICUBIC)
