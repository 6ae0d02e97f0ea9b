"""Decode image files of any mode to upright 8-bit RGB."""

from __future__ import annotations

import io
import stat
from functools import cache
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import ExifTags, Image, UnidentifiedImageError

from orthoproxy.core.boxes import Box, split_box
from orthoproxy.core.errors import InputError
from orthoproxy.data.current_file import REPLACE_FILE, noting_file
from orthoproxy.data.metadata import despite_metadata

try:
    from simplejpeg import decode_jpeg
except ImportError:  # no wheel for this Python; Pillow decodes to the same pixels, only slower
    decode_jpeg = None

try:  # the extra heic: decoders only, since the wheels of pillow-heif contain an encoder under the GPL
    from pi_heif import register_heif_opener

    register_heif_opener()
except ImportError:
    pass

MAX_MEGAPIXELS = 89  # Pillow warns above; decoding and conversion would take gigabytes
MAX_FILE_SIZE = 2**30  # bytes
JPEG_START = b"\xff\xd8\xff"
TURNS = {  # to upright, by EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
WHITE_VALUES = {2**bits - 1 for bits in (10, 12, 14)}  # of cameras that store fewer bits in 16


def read_image(path: str | Path, data: bytes | None = None, margin: float = 0.0) -> Image.Image:
    """Read an image file as upright RGB, as `to_rgb` converts it; `data` is its content, if that was read before.

    Any format that Pillow reads but EPS, whatever the file's name. If the path ends with a box, such as
    ``#xywh=10,20,100,200``, only this part is returned, with a margin that is a share of the box's size on each side.
    Raises InputError if the file is missing, is not a readable image, or has more than 1 GiB or 89 megapixels, or most
    of the box is outside of it.
    """
    content, box = read_image_bytes(path) if data is None else data, split_box(path)[1]
    with noting_file(path):
        try:
            image = despite_metadata(lambda plain: _decode(plain or content), lambda: content)
            return image.crop(box.edges(image.size, margin)) if box else image
        except MemoryError:
            raise
        except Exception as error:  # damaged files make Pillow raise almost any type
            raise InputError(_reason(error), path=path, hint=REPLACE_FILE) from error


def _decode(content: bytes) -> Image.Image:
    with Image.open(io.BytesIO(content), formats=readable_formats()) as image:
        _require_size(image)
        return to_rgb(image)


def read_image_bytes(path: str | Path) -> bytes:
    """Return the content of an image file, undecoded; raises InputError if it is missing, empty or above 1 GiB."""
    file = Path(split_box(path)[0])
    with noting_file(path):
        try:
            status = file.stat()
            if not stat.S_ISREG(status.st_mode):  # to open a named pipe would wait for ever
                raise ValueError("not a regular file")
            if not 0 < status.st_size <= MAX_FILE_SIZE:
                raise ValueError(f"larger than {MAX_FILE_SIZE >> 20} MiB" if status.st_size else "the file is empty")
            return file.read_bytes()
        except (OSError, ValueError) as error:
            raise InputError(_reason(error), path=path, hint=REPLACE_FILE) from error


def _require_size(image: Image.Image) -> None:
    if image.width * image.height > MAX_MEGAPIXELS * 10**6:
        raise Image.DecompressionBombError


def _reason(error: Exception) -> str:
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return f"more than {MAX_MEGAPIXELS} megapixels"
    if isinstance(error, UnidentifiedImageError):
        return "not an image of a known format"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


@cache
def readable_formats() -> tuple[str, ...]:
    """Return Pillow's names of the formats read: all but EPS, a program that Ghostscript would run."""
    Image.init()
    return tuple(name for name in Image.ID if name != "EPS")


@cache
def readable_suffixes() -> frozenset[str]:
    """Return the file name suffixes of these formats, such as ``.jpg``, in lower case."""
    formats = (*readable_formats(), "MPO")  # several JPEGs in a file; Pillow opens it as JPEG
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in formats)


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any mode to RGB: upright as EXIF says, on white, with gray of more bits scaled to 8."""
    brightest = _brightest(image)
    image.load()  # Pillow turns a TIFF here, and removes its orientation
    if (turn := _turn(image)) is not None:
        image = image.transpose(turn)
    if image.mode.startswith(("I", "F")):
        image = _to_8_bits(image, brightest)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _turn(image: Image.Image) -> Image.Transpose | None:
    try:
        return TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except MemoryError:
        raise
    except Exception:  # damaged EXIF makes Pillow raise many types
        return None


def _brightest(image: Image.Image) -> int:
    """Return the value of white in 16-bit gray: 65535, unless the bit depth or maximum in a TIFF says otherwise."""
    tags = getattr(image, "tag_v2", {})
    bits, maximum = tags.get(ExifTags.Base.BitsPerSample, (16,)), tags.get(ExifTags.Base.MaxSampleValue)
    return next((value for value in WHITE_VALUES if value == 2 ** bits[0] - 1 or maximum == (value,)), 65535)


def _to_8_bits(image: Image.Image, brightest: int) -> Image.Image:
    values = np.nan_to_num(np.asarray(image, dtype=np.float64))
    if image.mode.startswith("I;16") or values.max(initial=0) > 255:
        values = values * (255 / brightest)
    elif image.mode == "F" and values.max(initial=0) <= 1:
        values = values * 255
    return Image.fromarray(values.clip(0, 255).round().astype(np.uint8))


def read_pixels(path: str | Path, margin: float = 0.0) -> UInt8[np.ndarray, "h w 3"]:
    """Read the pixels that `read_image` gives, faster for plain JPEGs; it raises the same errors."""
    content, box = read_image_bytes(path), split_box(path)[1]
    with noting_file(path):
        pixels = _decode_plain_jpeg(content, box, margin)
    return np.asarray(read_image(path, content, margin)) if pixels is None else pixels


def _decode_plain_jpeg(content: bytes, box: Box | None, margin: float) -> UInt8[np.ndarray, "h w 3"] | None:
    """Decode a sound JPEG that needs no rotation or conversion; None for all else, which `read_image` reads."""
    if decode_jpeg is None or not content.startswith(JPEG_START):
        return None
    try:
        with Image.open(io.BytesIO(content), formats=["JPEG"]) as image:
            _require_size(image)
            if image.mode != "RGB" or _turn(image) is not None:
                return None
        pixels = decode_jpeg(content)
        left, top, right, bottom = box.edges(image.size, margin) if box else (0, 0, *image.size)
        return pixels[top:bottom, left:right]
    except MemoryError:
        raise
    except Exception:  # damaged files make Pillow raise almost any type; `read_image` finds the reason
        return None
