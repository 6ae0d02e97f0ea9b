"""The fixed transform of images for evaluation and search; it does without PyTorch, which takes seconds to import."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from orthoproxy.core.errors import InputError

Resize = int | Literal["stretch"] | None
MAX_RESIZED = 8  # sides of the output; a strip one pixel high would be resized to gigabytes


def evaluation_size(image_size: int, resize: Resize = None) -> int | tuple[int, int]:
    """Return the shorter side that `evaluation_transform` resizes an image to; with ``"stretch"``, height and width."""
    return (image_size, image_size) if resize == "stretch" else resize or round(image_size * 256 / 224)


def evaluation_transform(image_size: int, resize: Resize = None) -> ResizeAndCrop:
    """Return the fixed transform for evaluation and search: resize, bicubic, and crop the center square.

    Parameters
    ----------
    image_size
        Side of the output in pixels.
    resize
        Shorter side before the crop, in pixels; None for ``image_size * 256 / 224``, as is usual. ``"stretch"`` resizes
        the whole image to the square, whatever its aspect ratio.

    Returns
    -------
    ResizeAndCrop
        Maps an RGB image to uint8 pixels.

    Raises
    ------
    InputError
        If `resize` is below `image_size`.

    Examples
    --------
    >>> evaluation_transform(64)(Image.new("RGB", (100, 80))).shape
    (3, 64, 64)
    """
    size = evaluation_size(image_size, resize)
    if isinstance(size, int) and size < image_size:
        raise InputError(str(size), field="resize", expected=f"at least image_size {image_size}")
    return ResizeAndCrop(size, image_size)


@dataclass(frozen=True)
class ResizeAndCrop:
    """What `evaluation_transform` returns; a class, so that workers can unpickle it."""

    resize: int | tuple[int, int]
    image_size: int

    def __call__(self, image: Image.Image) -> UInt8[np.ndarray, "3 H W"]:
        size, short = self.image_size, min(image.size)
        if isinstance(self.resize, tuple):
            height, width = self.resize
        else:
            width, height = (int(self.resize * side / short) for side in image.size)
        left, top = round((width - size) / 2), round((height - size) / 2)
        if max(width, height) > MAX_RESIZED * size:  # resize only what the crop keeps
            across, down = image.width / width, image.height / height
            right, bottom = min((left + size) * across, image.width), min((top + size) * down, image.height)
            box = (left * across, top * down, right, bottom)
            square = image.resize((size, size), Image.Resampling.BICUBIC, box)
        else:
            resized = image.resize((width, height), Image.Resampling.BICUBIC)
            square = resized.crop((left, top, left + size, top + size))
        return np.array(square).transpose(2, 0, 1)
