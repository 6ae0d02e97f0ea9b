"""From an image file of any mode to RGB pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from orthoproxy.errors import InputError


def read_image(path: str | Path) -> Image.Image:
    """Read an image file as RGB, upright.

    Parameters
    ----------
    path
        Any format and mode that Pillow reads.

    Returns
    -------
    PIL.Image.Image
        Mode RGB; see `to_rgb`.

    Raises
    ------
    InputError
        If the file is missing or is not a readable image.

    Examples
    --------
    >>> read_image("nowhere.png")
    Traceback (most recent call last):
    ...
    orthoproxy.errors.InputError: cannot read the image nowhere.png: No such file or directory
    """
    try:
        with Image.open(path) as image:
            return to_rgb(image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"cannot read the image {path}: {reason}") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Turn an image of any mode into RGB as a person would see it on white paper.

    Parameters
    ----------
    image
        Rotated as its EXIF orientation says; transparent parts become white; 16-bit grey is scaled to 8 bits, and so is
        32-bit grey whose values exceed 255, or are floating point from 0 to 1.

    Returns
    -------
    PIL.Image.Image
        Mode RGB.

    Examples
    --------
    >>> to_rgb(Image.new("RGBA", (1, 1), (255, 0, 0, 0))).getpixel((0, 0))
    (255, 255, 255)
    >>> to_rgb(Image.new("I;16", (1, 1), 65535)).getpixel((0, 0))
    (255, 255, 255)
    """
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):
        image = _to_8_bits(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _to_8_bits(image: Image.Image) -> Image.Image:
    values = np.nan_to_num(np.asarray(image, dtype=np.float64))
    if image.mode.startswith("I;16") or values.max(initial=0) > 255:
        values = values / 257  # 65535 -> 255
    elif image.mode == "F" and values.max(initial=0) <= 1:
        values = values * 255
    return Image.fromarray(values.clip(0, 255).round().astype(np.uint8))
