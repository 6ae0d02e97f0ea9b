"""Boxes in pictures, as a part of an image's path: ``photos/a.jpg#xywh=10,20,100,200`` (W3C Media Fragments)."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from orthoproxy.core.errors import InputError

FRAGMENT = re.compile(r"#xywh=([-\d.,]*)$")  # so no file can have such a name
PATTERN = r"^\d{1,6},\d{1,6},[1-9]\d{0,5},[1-9]\d{0,5}$"


class Box(NamedTuple):
    """A rectangle in pixels of an upright picture, from its top left corner; as text, the end of a path."""

    x: int
    y: int
    width: int
    height: int

    @property
    def text(self) -> str:
        return ",".join(map(str, self))

    def __str__(self) -> str:
        return f"#xywh={self.text}"

    @classmethod
    def parse(cls, text: object) -> Box:
        """Read ``x,y,width,height``; raises InputError if these are not whole pixels, or the box is empty."""
        if not re.search(PATTERN, str(text)):
            raise InputError(f"box {text!r}", expected="x,y,width,height in whole pixels, such as 10,20,64,48")
        return cls(*map(int, str(text).split(",")))

    @classmethod
    def around(cls, left: float, top: float, right: float, bottom: float) -> Box:
        """Return the whole pixels that these edges touch; ValueError if none, or most are left of or above pixel 0."""
        x0, y0, x1, y1 = math.floor(left), math.floor(top), math.ceil(right), math.ceil(bottom)
        x, y = max(0, x0), max(0, y0)
        box = cls(x, y, x1 - x, y1 - y)
        outside = min(box.width, box.height) <= 0 or 2 * box.width * box.height < (x1 - x0) * (y1 - y0)
        if left >= right or top >= bottom or outside:
            raise ValueError
        return box

    def edges(self, size: Sequence[int], margin: float = 0.0) -> tuple[int, int, int, int]:
        """Return left, top, right and bottom in a picture of `size`, width and height.

        `margin`, a fraction of the box's own size, is added on each side before the edges are cut to the picture.
        Raises InputError if more than half of the box itself is outside.
        """
        width, height = size
        right, bottom = self.x + self.width, self.y + self.height
        inside = max(0, min(right, width) - self.x) * max(0, min(bottom, height) - self.y)
        if 2 * inside < self.width * self.height:
            raise InputError(f"{self.text} is outside of the picture of {width} x {height} pixels", field="box")
        dx, dy = round(margin * self.width), round(margin * self.height)
        return max(0, self.x - dx), max(0, self.y - dy), min(width, right + dx), min(height, bottom + dy)


def split_box(path: str | Path) -> tuple[str, Box | None]:
    """Return the file of an image and its box in the picture, if it has one; raises InputError as `Box.parse`."""
    text = str(path)
    found = FRAGMENT.search(text) if "#xywh=" in text else None
    if found is None:
        return text, None
    try:
        return text[: found.start()], Box.parse(found[1])
    except InputError as error:
        raise replace(error, path=path) from None


def add_boxes(
    what: str, paths: Iterable[tuple[object, str]], edges: Iterable[Sequence[str | float]], field: str, source: Path
) -> list[str]:
    """Add a box to each numbered path, from left, top, right and bottom, or four empty texts; errors number `what`."""
    boxed = []
    for (number, path), values in zip(paths, edges, strict=True):
        try:
            box = Box.around(*map(float, values)) if any(value != "" for value in values) else ""
        except (TypeError, ValueError, OverflowError) as error:
            problem = f"{what} {number}, {path}: box {','.join(map(str, values))}"
            expected = "left < right and top < bottom in pixels, mostly inside of the picture"
            raise InputError(problem, field=field, path=source, expected=expected) from error
        boxed.append(f"{path}{box}")
    return boxed
