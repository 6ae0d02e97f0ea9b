"""Files of every mode and orientation become upright RGB; files that are no image become an InputError."""

import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from errors import error_of
from PIL import Image

from orthoproxy.core.errors import InputError
from orthoproxy.data import images, read_image
from orthoproxy.data.images import read_pixels, to_rgb

COLORS = np.array([[[250, 10, 20], [30, 240, 60]], [[70, 80, 230], [90, 100, 110]], [[0, 0, 0], [255, 255, 255]]],
                   dtype=np.uint8)  # fmt: skip
GRAYS = np.array([[0, 40], [128, 200], [254, 255]], dtype=np.uint8)


def gray_as_rgb(gray: np.ndarray) -> np.ndarray:
    return np.repeat(gray[:, :, None], 3, axis=2)


def on_white(rgb: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha[:, :, None] / 255
    return (rgb * share + 255 * (1 - share)).round()


def assert_pixels(image: Image.Image, expected: np.ndarray, within: int = 0) -> None:
    assert image.mode == "RGB"
    assert np.abs(np.asarray(image).astype(int) - expected.astype(int)).max() <= within


ALPHA = np.array([[0, 255], [128, 64], [200, 1]], dtype=np.uint8)


def test_modes_with_color_or_transparency(tmp_path: Path) -> None:
    palette = Image.new("P", (2, 3))
    palette.putpalette(COLORS.reshape(-1, 3).tobytes())
    palette.putdata(range(6))
    clear = palette.copy()
    clear.info["transparency"] = 2  # the third color, row 1, column 0
    with_hole = COLORS.copy()
    with_hole[1, 0] = 255
    graded = palette.copy()
    graded.info["transparency"] = ALPHA.tobytes()
    key = Image.fromarray(COLORS)
    key.info["transparency"] = (70, 80, 230)
    cases = {
        "1": (Image.fromarray(GRAYS > 100), gray_as_rgb(np.where(GRAYS > 100, 255, 0)), 0),
        "L": (Image.fromarray(GRAYS), gray_as_rgb(GRAYS), 0),
        "LA": (Image.merge("LA", [Image.fromarray(GRAYS), Image.fromarray(ALPHA)]),
               on_white(gray_as_rgb(GRAYS), ALPHA), 1),
        "P": (palette, COLORS, 0),
        "P with a clear color": (clear, with_hole, 0),
        "P with graded colors": (graded, on_white(COLORS, ALPHA), 1),
        "RGB": (Image.fromarray(COLORS), COLORS, 0),
        "RGB with a clear color": (key, with_hole, 0),
        "CMYK": (Image.merge("CMYK", [Image.new("L", (8, 8), ink) for ink in (255, 0, 0, 0)]),
                 np.full((8, 8, 3), (0, 255, 255)), 0),
        "RGBA": (Image.fromarray(np.dstack([COLORS, ALPHA])), on_white(COLORS, ALPHA), 1),
    }  # fmt: skip
    for name, (image, expected, within) in cases.items():
        assert_pixels(to_rgb(image), expected, within)
        path = tmp_path / f"{name}.{'tiff' if name == 'CMYK' else 'png'}"
        image.save(path, **{key: value for key, value in image.info.items() if key == "transparency"})
        assert_pixels(read_image(path), expected, within)


WIDE = np.array([[0, 257], [25700, 32896], [65278, 65535]])


@pytest.mark.parametrize(("values", "suffixes", "expected"), [
    (WIDE.astype(np.uint16), ("png", "tiff"), (WIDE / 257).round()),
    (np.full((4, 4), 200, np.uint16), ("png", "tiff"), np.full((4, 4), 1)),  # dark, and so it stays
    *((WIDE.astype(kind), ("tiff",), (WIDE / 257).round()) for kind in (np.int32, np.float32)),
    *((GRAYS.astype(kind), ("tiff",), GRAYS) for kind in (np.int32, np.float32)),
    (GRAYS.astype(np.int32) - 10, ("tiff",), GRAYS.clip(10) - 10),
    (GRAYS.astype(np.float32) / 255, ("tiff",), GRAYS),
    (np.array([[np.nan, 100]], np.float32), ("tiff",), np.array([[0, 100]])),
])  # fmt: skip
def test_gray_of_more_than_eight_bits_is_scaled_if_it_needs_to_be(values, suffixes, expected, tmp_path) -> None:
    assert_pixels(to_rgb(Image.fromarray(values)), gray_as_rgb(expected), within=1)
    for suffix in suffixes:
        Image.fromarray(values).save(tmp_path / f"gray.{suffix}")
        assert_pixels(read_image(tmp_path / f"gray.{suffix}"), gray_as_rgb(expected))


UPRIGHT = {  # what the EXIF standard says row 0 and column 0 of the stored pixels are
    1: lambda x: x,  # top, left
    2: lambda x: x[:, ::-1],  # top, right
    3: lambda x: x[::-1, ::-1],  # bottom, right
    4: lambda x: x[::-1],  # bottom, left
    5: lambda x: x.swapaxes(0, 1),  # left, top
    6: lambda x: x[::-1].swapaxes(0, 1),  # right, top: turned a quarter clockwise
    7: lambda x: x[::-1, ::-1].swapaxes(0, 1),  # right, bottom
    8: lambda x: x[:, ::-1].swapaxes(0, 1),  # left, bottom: turned a quarter counter-clockwise
}


def photo(size: tuple[int, int] = (75, 50)) -> Image.Image:
    coarse = np.random.default_rng(0).integers(256, size=(7, 9, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


LOSSLESS = {"tiff": {}, "lzw.tiff": {"compression": "tiff_lzw"}, "png": {}, "webp": {"lossless": True}}
LOSSY = {"jpg": {"quality": 95}, "mpo": {"quality": 95, "save_all": True}, "avif": {"quality": 95}}


@pytest.mark.parametrize(("suffix", "options"), (LOSSLESS | LOSSY).items())
def test_every_format_is_turned_upright_once(suffix: str, options: dict[str, Any], tmp_path: Path) -> None:
    exif, path = Image.Exif(), tmp_path / f"turned.{suffix}"
    if suffix == "mpo":
        options = options | {"append_images": [photo()]}
    for orientation, upright in UPRIGHT.items():
        exif[0x0112] = orientation
        photo().save(path, exif=exif, **options)
        expected = upright(np.asarray(photo()))
        assert_pixels(read_image(path), expected, within=0 if suffix in LOSSLESS else 32)
        assert np.abs(read_pixels(path).astype(float) - expected).mean() < (0.01 if suffix in LOSSLESS else 4)


def test_heic_of_a_phone_is_turned_once() -> None:
    pytest.importorskip("pi_heif", reason="the extra heic is not installed")
    # `photo()`, its turn both in the container and in the EXIF, as phones write it
    image = read_image(Path(__file__).with_name("turned.heic"))
    assert np.abs(np.asarray(image).astype(float) - UPRIGHT[6](np.asarray(photo()))).mean() < 4


def encoded(kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    photo().save(file, kind, **options)
    return file.getvalue()


def png_with(kind: bytes, data: bytes) -> bytes:
    chunk = struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    content = encoded("PNG")
    return content[:33] + chunk + content[33:]  # behind the header


def with_orientation() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "what it shows"
    return exif


def damaged_mpo() -> bytes:
    content = encoded("MPO", save_all=True, append_images=[photo()], exif=with_orientation())
    start = content.index(b"MPF\0") + 4
    return content[:start] + b"\xff" * 8 + content[start + 8 :]


def damaged_tiff() -> bytes:
    content = bytearray(encoded("TIFF", exif=with_orientation()))
    start = content.index(struct.pack("<HH", 0x010E, 2))
    content[start + 4 : start + 12] = b"\xff\xff\xff\x7f" * 2  # its length and its place
    return bytes(content)


BOMB = zlib.compress(bytes(80_000_000), 9)
DAMAGED_METADATA: dict[str, tuple[Callable[[], bytes], int]] = {  # and the orientation, which is sound
    "png, compressed text": (lambda: png_with(b"zTXt", b"Title\0\0" + BOMB), 1),
    "png, exif": (lambda: png_with(b"eXIf", b"garbage!"), 1),
    "webp, exif": (lambda: encoded("WEBP", exif=b"Exif\0\0garbage!"), 1),
    "jpeg, exif that ends": (lambda: encoded("JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\x7f", quality=95), 1),
    "mpo, list of its images": (damaged_mpo, 6),
    "tiff, description": (damaged_tiff, 6),
    "avif, exif": (lambda: encoded("AVIF", exif=with_orientation()).replace(b"II*\0", b"????").replace(
        b"MM\0*", b"????"), 6),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's own about the metadata
@pytest.mark.parametrize("name", DAMAGED_METADATA)
def test_damaged_metadata_do_not_cost_the_picture(name: str, tmp_path: Path) -> None:
    make, orientation = DAMAGED_METADATA[name]
    (tmp_path / "image").write_bytes(make())
    expected = UPRIGHT[orientation](np.asarray(photo()))
    for image in (read_image(tmp_path / "image"), read_image(tmp_path / "image", make())):
        assert np.abs(np.asarray(image).astype(float) - expected).mean() < 8
    assert np.array_equal(read_pixels(tmp_path / "image"), np.asarray(image))


def packed_tiff(values: list[int]) -> bytes:
    """Encode a row of gray values of 12 bits, two in three bytes."""
    data = int("".join(f"{value:012b}" for value in values), 2).to_bytes(len(values) * 12 // 8, "big")
    tags = [(256, 4, 1, len(values)), (257, 4, 1, 1), (258, 3, 1, 12), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 8)]
    tags += [(277, 3, 1, 1), (278, 4, 1, 1), (279, 4, 1, len(data))]
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags) + bytes(4)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + directory


def test_twelve_bits_are_scaled_where_the_file_says_so(tmp_path: Path) -> None:
    values, path = np.array([[0, 1000, 2048, 4095]], np.uint16), tmp_path / "gray.tiff"
    path.write_bytes(packed_tiff(values[0].tolist()))
    assert_pixels(read_image(path), gray_as_rgb((values * (255 / 4095)).round()))
    for maximum, white in ((4095, 4095), (4000, 65535)):  # no camera has 4000
        Image.fromarray(values).save(path, tiffinfo={281: maximum})
        assert_pixels(read_image(path), gray_as_rgb((values * (255 / white)).round()))


def test_what_is_no_image_file_is_an_input_error(tmp_path: Path) -> None:
    for number, content in enumerate((b"", b"hello", b"\x89PNG\r\n\x1a\n")):
        (tmp_path / f"{number}.png").write_bytes(content)
    os.mkfifo(tmp_path / "pipe.png")  # to open it would wait for ever
    for path in (*tmp_path.iterdir(), tmp_path, tmp_path / "missing.png"):
        error = error_of(read_image, path)
        assert error.path == path and error.problem


JPEG_OPTIONS: list[dict[str, object]] = [
    {}, {"quality": 30}, {"quality": 100, "subsampling": 0}, {"subsampling": 1}, {"subsampling": 2}, {"optimize": True},
    {"progressive": True}, {"keep_rgb": True}, {"comment": b"me"}, {"icc_profile": b"any"}, {"restart_marker_rows": 1},
]  # fmt: skip


@pytest.mark.parametrize("size", [(75, 50), (1, 1), (17, 200)])
def test_a_jpeg_has_the_pixels_that_pillow_gives(size: tuple[int, int], tmp_path: Path) -> None:
    for options in JPEG_OPTIONS:
        photo(size).save(tmp_path / "photo.jpg", **options)
        image = read_pixels(tmp_path / "photo.jpg")
        assert image.shape == (size[1], size[0], 3)
        assert np.array_equal(image, np.asarray(read_image(tmp_path / "photo.jpg"))), options
    for mode in ("L", "CMYK"):
        photo(size).convert(mode).save(tmp_path / "photo.jpg")
        assert np.array_equal(read_pixels(tmp_path / "photo.jpg"), np.asarray(read_image(tmp_path / "photo.jpg")))


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")
def test_a_damaged_jpeg_is_read_or_an_error_as_pillow_does(tmp_path: Path) -> None:
    content, path, generator = encoded("JPEG"), tmp_path / "damaged.jpg", np.random.default_rng(2)
    readable = 0
    for number in range(100):
        damaged = bytearray(content[: generator.integers(len(content))] if number % 4 == 0 else content)
        for place in generator.integers(len(damaged), size=number % 4) if damaged else []:
            damaged[place] = generator.integers(256)
        path.write_bytes(damaged)
        try:
            expected = np.asarray(read_image(path))
        except InputError as error:
            assert str(error_of(read_pixels, path)) == str(error)
        else:
            assert np.array_equal(read_pixels(path), expected)
            readable += 1
    assert 0 < readable < 100


def test_too_many_megapixels_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photo((1500, 1000)).save(tmp_path / "large.jpg")
    monkeypatch.setattr(images, "MAX_MEGAPIXELS", 1)
    assert "1 megapixels" in error_of(read_pixels, tmp_path / "large.jpg").problem
