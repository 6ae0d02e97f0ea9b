"""From an image file of any mode to RGB pixels."""

from __future__ import annotations

import io
import math
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from orthoproxy.core.errors import InputError
from orthoproxy.data.read_timeout import reading

try:
    from simplejpeg import decode_jpeg
except ImportError:  # no wheel for this Python; Pillow decodes the same pixels, only slower
    decode_jpeg = None

MAX_MEGAPIXELS = 89  # beyond that Pillow warns; decoding and turning into RGB would take gigabytes
JPEG_START = b"\xff\xd8\xff"
BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)  # raised where warnings are errors


def read_image(path: str | Path) -> Image.Image:
    """Read an image file as RGB, upright.

    Parameters
    ----------
    path
        Any mode, and any format of `readable_formats`, whatever the file's name says.

    Returns
    -------
    PIL.Image.Image
        Mode RGB; see `to_rgb`.

    Raises
    ------
    InputError
        If the file is missing, is not a readable image, takes longer than `watch.read_seconds`, or has more than
        `MAX_MEGAPIXELS`, which is found out before it is decoded.

    Examples
    --------
    >>> read_image("nowhere.png")
    Traceback (most recent call last):
    ...
    orthoproxy.core.errors.InputError: cannot read the image nowhere.png: No such file or directory
    """
    with reading(path):
        return _read(path)


def _read(path: str | Path) -> Image.Image:
    try:
        with Image.open(path, formats=readable_formats()) as image:
            _require_small(image.width * image.height)
            return to_rgb(image)
    except Exception as error:  # of many types, whatever the damage makes Pillow trip over
        raise InputError(f"cannot read the image {path}: {_reason(error, path)}") from error


@cache
def readable_formats() -> tuple[str, ...]:
    """List the formats that images are read in: all of Pillow's but EPS, which is a program that Ghostscript runs.

    Returns
    -------
    tuple of str
        As Pillow calls them.

    Examples
    --------
    >>> "PNG" in readable_formats(), "EPS" in readable_formats()
    (True, False)
    """
    Image.init()
    return tuple(name for name in Image.ID if name != "EPS")


@cache
def readable_endings() -> frozenset[str]:
    """List the endings of file names in which images of these formats come, in small letters.

    Returns
    -------
    frozenset of str
        With the dot.

    Examples
    --------
    >>> ".jpg" in readable_endings(), ".eps" in readable_endings()
    (True, False)
    """
    return frozenset(ending for ending, name in Image.registered_extensions().items() if name in readable_formats())


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
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


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
    if not _is_upright(image):  # else it would be copied
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):
        image = _to_8_bits(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _is_upright(image: Image.Image) -> bool:
    return image.getexif().get(ExifTags.Base.Orientation, 1) == 1


def _to_8_bits(image: Image.Image) -> Image.Image:
    values = np.nan_to_num(np.asarray(image, dtype=np.float64))
    if image.mode.startswith("I;16") or values.max(initial=0) > 255:
        values = values / 257  # 65535 -> 255
    elif image.mode == "F" and values.max(initial=0) <= 1:
        values = values * 255
    return Image.fromarray(values.clip(0, 255).round().astype(np.uint8))


@dataclass(frozen=True)
class CroppableImage:
    """The pixels of an image, or of a smaller copy of it, and the size that the image itself has.

    Parameters
    ----------
    pixels
        RGB, upright.
    width, height
        Of the image; where a crop lies is said in these, whatever the size of the copy.

    Examples
    --------
    >>> half = CroppableImage(np.zeros((30, 40, 3), dtype=np.uint8), width=80, height=60)
    >>> half.crop(top=10, left=20, height=50, width=40).shape
    (25, 20, 3)
    """

    pixels: UInt8[np.ndarray, "h w 3"]
    width: int
    height: int

    def crop(self, top: int, left: int, height: int, width: int) -> UInt8[np.ndarray, "rows columns 3"]:
        """Cut a box out, as an array of its own.

        Parameters
        ----------
        top, left, height, width
            The box in the image's own pixels; of a smaller copy, the nearest whole pixels are taken, at least one.
        """
        rows = _stretch(top, height, self.height, self.pixels.shape[0])
        columns = _stretch(left, width, self.width, self.pixels.shape[1])
        return np.array(self.pixels[rows, columns], order="C")


def _stretch(start: int, length: int, whole: int, copy: int) -> slice:
    """Where a part of `whole` pixels lies among `copy` pixels."""
    first = min(round(start * copy / whole), copy - 1)
    return slice(first, max(round((start + length) * copy / whole), first + 1))


def read_croppable_image(path: str | Path) -> CroppableImage:
    """Read an image file to the pixels that `read_image` gives, faster where it is a plain JPEG.

    Parameters
    ----------
    path
        Any format and mode that Pillow reads.

    Returns
    -------
    CroppableImage
        All of the image.

    Raises
    ------
    InputError
        As from `read_image`.

    Examples
    --------
    >>> read_croppable_image("nowhere.png")
    Traceback (most recent call last):
    ...
    orthoproxy.core.errors.InputError: cannot read the image nowhere.png: No such file or directory
    """
    with reading(path):
        pixels = _read_plain_jpeg(path)
        if pixels is None:
            pixels = np.asarray(_read(path))
    return CroppableImage(pixels, width=pixels.shape[1], height=pixels.shape[0])


def _read_plain_jpeg(path: str | Path) -> UInt8[np.ndarray, "h w 3"] | None:
    """The pixels of a JPEG without flaws that needs no turning or conversion; None for all else, which is Pillow's."""
    if decode_jpeg is None:
        return None
    try:
        with Path(path).open("rb") as file:
            content = file.read(len(JPEG_START))
            if content != JPEG_START:
                return None
            content += file.read()
        with Image.open(io.BytesIO(content), formats=["JPEG"]) as image:
            _require_small(image.width * image.height)
            plain = image.mode == "RGB" and _is_upright(image)
        return decode_jpeg(content) if plain else None
    except Exception:  # of many types; Pillow says what is wrong, or reads it all the same
        return None
