"""What happens to an image between the file and the encoder, in training and in evaluation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from jaxtyping import UInt8
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from orthoproxy.errors import InputError

Transform = Callable[[Image.Image], UInt8[Tensor, "3 H W"]]
Resize = int | Literal["squash"] | None


def training_transform(
    image_size: int,
    crop_scale: tuple[float, float] = (0.2, 1.0),
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3),
    flip: float = 0.5,
    jitter: float = 0.0,
    grayscale: float = 0.0,
) -> Transform:
    """Return the augmentation: a random crop resized to a square, bicubic, and a horizontal flip.

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
    Callable
        From an RGB image to uint8 pixels; draws from torch's random state.

    Examples
    --------
    >>> training_transform(64)(Image.new("RGB", (100, 80))).shape
    torch.Size([3, 64, 64])
    """
    steps: list[Callable] = [
        v2.RandomResizedCrop(image_size, scale=crop_scale, ratio=crop_ratio, interpolation=InterpolationMode.BICUBIC)
    ]
    if flip:
        steps.append(v2.RandomHorizontalFlip(flip))
    if jitter:
        steps.append(v2.ColorJitter(brightness=jitter, contrast=jitter, saturation=jitter))
    if grayscale:
        steps.append(v2.RandomGrayscale(grayscale))
    return v2.Compose([*steps, v2.PILToTensor()])


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
    if resize == "squash":
        whole = v2.Resize((image_size, image_size), interpolation=InterpolationMode.BICUBIC)
        return v2.Compose([whole, v2.PILToTensor()])
    resize = resize or round(image_size * 256 / 224)
    if resize < image_size:
        raise InputError(f"data.resize: {resize} is less than encoder.image_size {image_size}, which is cut out of it")
    return v2.Compose(
        [
            v2.Resize(resize, interpolation=InterpolationMode.BICUBIC),
            v2.CenterCrop(image_size),
            v2.PILToTensor(),
        ]
    )
