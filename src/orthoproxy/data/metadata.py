"""Image files without their metadata, to read those whose metadata is damaged."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Literal, TypeVar

T = TypeVar("T")

TIFF_TEXTS = (269, 270, 271, 272, 282, 283, 285, 296, 297, 305, 306, 315, 316)  # what it shows, who made it, with what
TIFF_PRIVATE = 700  # from here on: XMP, IPTC, EXIF, GPS, color profiles, of the maker


def despite_metadata(decode: Callable[[bytes | None], T], read: Callable[[], bytes]) -> T:
    """Call `decode` with None; if it raises, call it with the file's content without metadata."""
    try:
        return decode(None)
    except MemoryError:
        raise
    except Exception as error:  # Pillow raises almost any type
        try:
            return decode(without_metadata(read()))
        except Exception:
            raise error from None


def without_metadata(content: bytes) -> bytes:
    """Remove the metadata of a PNG, JPEG, TIFF or AVIF file that Pillow may fail on, but not its orientation."""
    if content.startswith(b"\x89PNG"):
        return _strip_png(content)
    if content.startswith(b"\xff\xd8"):
        return _strip_jpeg(content)
    if content.startswith((b"II*\0", b"MM\0*")):
        return _strip_tiff(content, "little" if content.startswith(b"II") else "big")
    if content[4:11] == b"ftypavi":
        return content.replace(b"Exif", b"free")  # the type of this item; the file's own turns remain
    raise ValueError("no metadata known")


def _strip_png(content: bytes) -> bytes:
    kept, start = [content[:8]], 8
    while chunk := content[start : start + 12 + int.from_bytes(content[start : start + 4], "big")]:
        kind, is_sound = chunk[4:8], zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:], "big")
        if kind[:1].isupper() or kind == b"tRNS" or (kind == b"eXIf" and is_sound):  # upper case is what pixels need
            kept.append(chunk)
        start += len(chunk)
    return b"".join(kept)


def _strip_jpeg(content: bytes) -> bytes:
    kept, start = [content[:2]], 2
    while (marker := content[start + 1]) != 0xDA:  # where the pixels begin
        segment = content[start : start + 2 + int.from_bytes(content[start + 2 : start + 4], "big")]
        if not (0xE2 <= marker <= 0xED or marker in (0xEF, 0xFE)):  # all but JFIF, EXIF, and Adobe's color transform
            kept.append(segment)
        start += len(segment)
    return b"".join([*kept, content[start:]])


def _strip_tiff(content: bytes, order: Literal["little", "big"]) -> bytes:
    start = int.from_bytes(content[4:8], order)
    end = start + 2 + 12 * int.from_bytes(content[start : start + 2], order)
    tags = [content[place : place + 12] for place in range(start + 2, end, 12)]
    numbers = [int.from_bytes(tag[:2], order) for tag in tags]
    kept = [tag for tag, n in zip(tags, numbers, strict=True) if n < TIFF_PRIVATE and n not in TIFF_TEXTS]
    directory = len(kept).to_bytes(2, order) + b"".join(kept) + bytes(4)  # the only one
    return content[:start] + directory.ljust(end + 4 - start, b"\0") + content[end + 4 :]
