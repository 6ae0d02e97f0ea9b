"""Decode image files of any mode to upright 8-bit RGB."""

from __future__ import annotations

import io
import os
import stat
from functools import cache
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from orthoproxy.core.errors import InputError
from orthoproxy.data.loading import REPLACE_FILE, noting_file

try:
    from simplejpeg import decode_jpeg
except ImportError:  # no wheel for this Python; Pillow decodes to the same pixels, only slower
    decode_jpeg = None

MAX_MEGAPIXELS = 89  # Pillow warns above; decoding and conversion would take gigabytes
MAX_FILE_SIZE = 2**30  # bytes
JPEG_START = b"\xff\xd8\xff"


def read_image(path: str | Path, data: bytes | None = None) -> Image.Image:
    """Read an image file as upright RGB, as `to_rgb` converts it; `data` is its content, if that was read before.

    Any format that Pillow reads but EPS, whatever the file's name. Raises InputError if the file
    is missing, is not a readable image, or has more than 89 megapixels.
    """
    with noting_file(path):
        try:
            _require_regular(path)
            with Image.open(path if data is None else io.BytesIO(data), formats=readable_formats()) as image:
                _require_size(image)
                return to_rgb(image)
        except MemoryError:
            raise
        except Exception as error:  # damaged files make Pillow raise almost any type
            raise InputError(_reason(error, path), path=path, hint=REPLACE_FILE) from error


def read_image_bytes(path: str | Path) -> bytes:
    """Return the content of an image file; raises InputError as `read_image` does."""
    with noting_file(path):
        try:
            if _require_regular(path).st_size > MAX_FILE_SIZE:
                raise ValueError(f"larger than {MAX_FILE_SIZE >> 20} MiB")
            return Path(path).read_bytes()
        except (OSError, ValueError) as error:
            raise InputError(_reason(error, path), path=path, hint=REPLACE_FILE) from error


def _require_regular(path: str | Path) -> os.stat_result:
    status = Path(path).stat()
    if not stat.S_ISREG(status.st_mode):  # to open a named pipe would wait for ever
        raise ValueError("not a regular file")
    return status


def _require_size(image: Image.Image) -> None:
    if image.width * image.height > MAX_MEGAPIXELS * 10**6:
        raise Image.DecompressionBombError


def _reason(error: Exception, path: str | Path) -> str:
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return f"more than {MAX_MEGAPIXELS} megapixels"
    if isinstance(error, UnidentifiedImageError):
        return "not an image of a known format" if Path(path).stat().st_size else "the file is empty"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


@cache
def readable_formats() -> tuple[str, ...]:
    """Return Pillow's names of the formats read: all but EPS, a program that Ghostscript would run."""
    Image.init()
    return tuple(name for name in Image.ID if name != "EPS")


@cache
def readable_suffixes() -> frozenset[str]:
    """Return the file name suffixes of these formats, such as ``.jpg``, in lower case."""
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in readable_formats())


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any mode to RGB as a person would see it on white paper.

    It is rotated as its EXIF orientation says; transparent parts become white; 16-bit gray is scaled to 8 bits, as is
    32-bit gray with values above 255, or floating point values from 0 to 1.
    """
    if not _is_upright(image):  # exif_transpose would copy it
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):
        image = _to_8_bits(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
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


def read_pixels(path: str | Path) -> UInt8[np.ndarray, "h w 3"]:
    """Read the pixels that `read_image` gives, faster for plain JPEGs; it raises the same errors."""
    with noting_file(path):
        pixels = _decode_plain_jpeg(path)
    return np.asarray(read_image(path)) if pixels is None else pixels


def _decode_plain_jpeg(path: str | Path) -> UInt8[np.ndarray, "h w 3"] | None:
    """Decode a sound JPEG that needs no rotation or conversion; None for all else, which `read_image` reads."""
    if decode_jpeg is None:
        return None
    try:
        _require_regular(path)
        with Path(path).open("rb") as file:
            content = file.read(len(JPEG_START))
            if content != JPEG_START:
                return None
            content += file.read()
        with Image.open(io.BytesIO(content), formats=["JPEG"]) as image:
            _require_size(image)
            plain = image.mode == "RGB" and _is_upright(image)
        return decode_jpeg(content) if plain else None
    except MemoryError:
        raise
    except Exception:  # damaged files make Pillow raise almost any type; `read_image` finds the reason
        return None
