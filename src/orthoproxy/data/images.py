"""From an image file of any mode to RGB pixels."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from orthoproxy.errors import InputError

MAX_MEGAPIXELS = 89  # beyond that Pillow warns; decoding and turning into RGB would take gigabytes
BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)  # raised where warnings are errors


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
        If the file is missing, is not a readable image, or has more than `MAX_MEGAPIXELS`, which is found out before
        it is decoded.

    Examples
    --------
    >>> read_image("nowhere.png")
    Traceback (most recent call last):
    ...
    orthoproxy.errors.InputError: cannot read the image nowhere.png: No such file or directory
    """
    try:
        with Image.open(path) as image:
            _require_small(image.width * image.height)
            return to_rgb(image)
    except (OSError, ValueError, SyntaxError, *BOMBS) as error:
        raise InputError(f"cannot read the image {path}: {_reason(error, path)}") from error


def _require_small(pixels: int) -> None:
    if pixels > MAX_MEGAPIXELS * 10**6:
        raise ValueError(_too_large(pixels))


def _too_large(pixels: int) -> str:
    return f"{math.ceil(pixels / 10**6)} megapixels, and the limit is {MAX_MEGAPIXELS}; make it smaller"


def _reason(error: Exception, path: str | Path) -> str:
    if isinstance(error, BOMBS) and (pixels := re.search(r"\d+", str(error))):
        return _too_large(int(pixels[0]))
    if isinstance(error, UnidentifiedImageError):
        empty = Path(path).stat().st_size == 0
        return "the file is empty" if empty else "it is no image, or of a format that Pillow does not read"
    return getattr(error, "strerror", None) or str(error)


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
