"""Small pictures, and how a page holds them without a file beside it."""

from __future__ import annotations

import base64
import io
from pathlib import Path

from PIL import Image, ImageOps

from orthoproxy.core.errors import InputError
from orthoproxy.data import read_image


def thumbnail(path: str | Path, side: int = 128) -> Image.Image | None:
    """Read an image, cut its centre square, which is what an evaluated model sees of it, and shrink that.

    Parameters
    ----------
    path
        Any file that `data.read_image` reads.
    side
        Of the square, in pixels; smaller images are not enlarged.

    Returns
    -------
    PIL.Image.Image or None
        None where the file is gone or cannot be read: a report outlives the images it shows.

    Examples
    --------
    >>> print(thumbnail("nowhere.png"))
    None
    """
    try:
        image = read_image(path)
    except InputError:
        return None
    side = min(side, *image.size)
    return ImageOps.fit(image, (side, side), Image.Resampling.LANCZOS)


def data_uri(image: Image.Image) -> str:
    """Write an image as a ``data:`` address, as JPEG or PNG, whichever is smaller.

    Parameters
    ----------
    image
        Mode RGB.

    Returns
    -------
    str
        For the `src` of an HTML `img`.

    Examples
    --------
    >>> data_uri(Image.new("RGB", (8, 8)))[:22]
    'data:image/png;base64,'
    """
    kind, content = min((_encoded(image, kind) for kind in ("png", "jpeg")), key=lambda pair: len(pair[1]))
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _encoded(image: Image.Image, kind: str) -> tuple[str, bytes]:
    buffer = io.BytesIO()
    # line drawings have few colours: a palette keeps them sharp where JPEG would smear their edges
    drawn = image.quantize(32) if kind == "png" and image.getcolors(256) else image
    drawn.save(buffer, kind, quality=78, optimize=True)
    return kind, buffer.getvalue()
