"""Thumbnails, and their way into the page."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from orthoproxy.reports.pictures import data_uri, thumbnail


def decoded(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1])))


def test_a_thumbnail_is_the_centre_square(tmp_path: Path) -> None:
    pixels = np.zeros((100, 300, 3), dtype=np.uint8)
    pixels[:, 100:200] = 255
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    small = thumbnail(tmp_path / "wide.png", side=50)
    assert small is not None and small.size == (50, 50)
    assert np.asarray(small).min() > 200


@pytest.mark.parametrize("content", [None, b"", b"no picture"])
def test_what_cannot_be_read_is_none(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "x.png").write_bytes(content)
    assert thumbnail(tmp_path / "x.png") is None


def test_drawings_become_png_and_photographs_jpeg() -> None:
    drawing = Image.new("RGB", (96, 96), "white")
    drawing.paste("black", (20, 20, 70, 70))
    noise = np.random.default_rng(0).integers(256, size=(96, 96, 3), dtype=np.uint8)
    assert data_uri(drawing).startswith("data:image/png")
    assert data_uri(Image.fromarray(noise)).startswith("data:image/jpeg")
    np.testing.assert_array_equal(np.asarray(decoded(data_uri(drawing)).convert("RGB")), np.asarray(drawing))
