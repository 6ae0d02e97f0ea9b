"""Broken and hostile pictures: each is refused with the right status, none harms the server."""

from __future__ import annotations

import io
import os
import signal
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from orthoproxy.data import evaluation_transform, read_image
from orthoproxy.server.limits import Limits, Refused
from orthoproxy.server.uploads import Decoders, picture_format

PIXELS = 4_000_000


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def noise(width: int = 60, height: int = 40) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, size=(height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, *chunks: bytes, data: bytes | None = None) -> bytes:
    """A PNG that says its size, whatever it holds."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    pixels = zlib.compress(bytes(1000)) if data is None else data
    parts = [chunk(b"IHDR", header), *chunks, chunk(b"IDAT", pixels), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def gif_bomb() -> bytes:
    frames = [Image.new("P", (1500, 1500), number) for number in range(40)]
    return saved(frames[0], "GIF", save_all=True, append_images=frames[1:])


SVG = b"<svg xmlns='http://www.w3.org/2000/svg'><script>fetch('http://evil.example')</script></svg>"
GOOD: dict[str, Callable[[], bytes]] = {
    "jpeg": lambda: saved(noise(), "JPEG"),
    "progressive jpeg": lambda: saved(noise(), "JPEG", progressive=True),
    "cmyk jpeg": lambda: saved(noise().convert("CMYK"), "JPEG"),
    "turned jpeg": lambda: saved(noise(), "JPEG", exif=turned()),
    "png": lambda: saved(noise(), "PNG"),
    "png with alpha": lambda: saved(noise().convert("RGBA"), "PNG"),
    "palette png": lambda: saved(noise().convert("P"), "PNG"),
    "16-bit png": lambda: saved(Image.fromarray(np.full((40, 60), 40_000, dtype=np.uint16)), "PNG"),
    "webp": lambda: saved(noise(), "WEBP", lossless=True),
    "bmp": lambda: saved(noise(), "BMP"),
    "gif, first of several frames": lambda: saved(
        noise(), "GIF", save_all=True, append_images=[Image.new("RGB", (60, 40))]
    ),
    "many large frames": gif_bomb,
    "huge EXIF": lambda: saved(noise(), "PNG", exif=b"Exif\0\0II*\0\x08\0\0\0\0\0" + bytes(5_000_000)),
}
BAD: dict[str, tuple[Callable[[], bytes], int]] = {
    "empty": (lambda: b"", 415),
    "words": (lambda: b"plain words, no picture", 415),
    "svg with a script": (lambda: SVG, 415),
    "html": (lambda: b"<html><script>alert(1)</script>", 415),
    "tiff": (lambda: saved(noise(), "TIFF"), 415),
    "icon": (lambda: saved(noise(), "ICO"), 415),
    "ppm": (lambda: saved(noise(), "PPM"), 415),
    "eps, which would start a program": (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", 415),
    "words that begin as a bitmap": (lambda: b"BM is a film prize", 415),
    "jpeg cut off in its header": (lambda: saved(noise(), "JPEG")[:40], 422),
    "jpeg cut off": (lambda: saved(noise(400, 400), "JPEG")[:9000], 422),
    "png cut off": (lambda: saved(noise(), "PNG")[:900], 422),
    "webp cut off": (lambda: saved(noise(), "WEBP")[:200], 422),
    "gif cut off": (lambda: saved(noise(), "GIF")[:900], 422),
    "svg behind a png's first bytes": (lambda: b"\x89PNG\r\n\x1a\n" + SVG, 422),
    "zip behind a jpeg's first bytes": (lambda: b"\xff\xd8\xff\xe0PK\x03\x04" + bytes(100), 422),
    "random bytes behind a webp's first": (lambda: b"RIFF\xff\xff\xff\xffWEBPVP8X" + os.urandom(500), 422),
    "png of wrong checksum": (lambda: saved(noise(), "PNG")[:20] + b"\xff" + saved(noise(), "PNG")[21:], 422),
    "png without pixels": (lambda: png(50, 50, data=b""), 422),
    "png of no height": (lambda: png(50, 0), 422),
    "bomb: a png of gigapixels": (lambda: png(100_000, 100_000), 413),
    "bomb: a png just above the limit": (lambda: png(2001, 2000), 413),
    "bomb: a jpeg": (lambda: saved(Image.new("L", (3000, 3000)), "JPEG"), 413),
    "bomb: a gif of gigapixels": (
        lambda: b"GIF89a" + struct.pack("<HH", 65535, 65535) + saved(noise(), "GIF")[10:],
        413,
    ),
    "bomb: a bitmap of gigapixels": (lambda: bitmap(60_000, 60_000), 413),
    "bomb: pixels inflate without end": (lambda: png(1500, 1500, data=zlib.compress(bytes(300_000_000), 9)), 200),
    "bomb: text inflates without end": (lambda: png(50, 50, chunk(b"zTXt", b"a\0\0" + deflated())), 422),
    "bomb: a profile inflates without end": (lambda: png(50, 50, chunk(b"iCCP", b"a\0\0" + deflated())), 422),
    "a line of pixels": (lambda: png(20_000, 1), 422),
    "a line too long": (lambda: png(40_000, 50), 413),
}


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def bitmap(width: int, height: int) -> bytes:
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 100, 0, 0, 54) + header + bytes(100)


def deflated() -> bytes:
    return zlib.compress(bytes(200_000_000), 9)


@pytest.fixture(scope="module")
def decoders() -> Iterator[Decoders]:
    started = Decoders(Limits(decoders=1, pixels=PIXELS, upload_bytes=8_000_000, decode_seconds=20))
    yield started
    started.close()


@pytest.mark.parametrize("name", GOOD)
def test_accepted_pictures_become_what_reading_the_file_gives(name: str, decoders: Decoders, tmp_path) -> None:
    content = GOOD[name]()
    (tmp_path / "picture").write_bytes(content)
    expected = evaluation_transform(32, None)(read_image(tmp_path / "picture")).numpy()
    np.testing.assert_array_equal(decoders.view(content, 32, None), expected)


@pytest.mark.parametrize("name", BAD)
def test_others_are_refused_and_the_process_lives(name: str, decoders: Decoders) -> None:
    make, status = BAD[name]
    before = list(decoders.pids())
    for ask in (lambda content: decoders.view(content, 32, None), lambda content: decoders.thumbnail(content, 160)):
        content, found = make(), 200
        try:
            ask(content)
        except Refused as refusal:
            found = refusal.status
            assert len(refusal.reason) > 10 and "/" not in refusal.reason and "Traceback" not in refusal.reason
        assert found in ({200, 422} if status == 200 else {status})
    assert list(decoders.pids()) == before
    assert decoders.view(GOOD["png"](), 32, None).shape == (3, 32, 32)


def test_every_cut_of_a_picture_is_decoded_or_refused(decoders: Decoders) -> None:
    for kind in ("JPEG", "PNG", "GIF", "WEBP", "BMP"):
        whole = saved(noise(24, 20), kind)
        for end in range(0, len(whole), max(1, len(whole) // 25)):
            try:
                assert decoders.view(whole[:end], 32, None).shape == (3, 32, 32)
            except Refused as refusal:
                assert refusal.status in (413, 415, 422)


def test_flipped_bytes_are_decoded_or_refused(decoders: Decoders) -> None:
    generator = np.random.default_rng(0)
    for kind in ("JPEG", "PNG", "GIF", "WEBP", "BMP"):
        whole = np.frombuffer(saved(noise(24, 20), kind), dtype=np.uint8)
        for _ in range(40):
            content = whole.copy()
            content[generator.integers(len(content), size=3)] = generator.integers(256, size=3)
            try:
                decoders.view(content.tobytes(), 32, None)
            except Refused as refusal:
                assert refusal.status in (413, 415, 422)


def test_too_many_bytes_are_not_looked_at(decoders: Decoders) -> None:
    with pytest.raises(Refused) as caught:
        decoders.view(GOOD["png"]() + bytes(8_000_000), 32, None)
    assert caught.value.status == 413


def test_the_extension_says_nothing() -> None:
    assert picture_format(b"\xff\xd8\xff\xe0 named .png") == "JPEG"
    assert picture_format(b"") is None


def test_thumbnails_are_small_and_carry_nothing_along(decoders: Decoders) -> None:
    exif = Image.Exif()
    exif[0x010E] = "taken at a secret place"
    content = saved(noise(900, 300), "JPEG", exif=exif)
    small = decoders.thumbnail(content, 160)
    with Image.open(io.BytesIO(small)) as image:
        assert (image.format, image.size) == ("WEBP", (160, 53))
    assert b"secret" in content and b"secret" not in small


def test_what_takes_too_long_is_ended(decoders: Decoders) -> None:
    limited = Decoders(Limits(decoders=1, pixels=PIXELS, decode_seconds=0.4))
    try:
        limited.view(GOOD["png"](), 32, None)
        (pid,) = limited.pids()
        os.kill(pid, signal.SIGSTOP)  # as a decoder that never comes to an end
        start = time.monotonic()
        with pytest.raises(Refused, match="more than") as caught:
            limited.view(GOOD["png"](), 32, None)
        assert caught.value.status == 422
        assert time.monotonic() - start < 10
        assert limited.view(GOOD["png"](), 32, None).shape == (3, 32, 32)  # by another process
        assert list(limited.pids()) != [pid]
    finally:
        limited.close()


def test_a_process_that_dies_is_replaced(decoders: Decoders) -> None:
    (pid,) = decoders.pids()
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(Refused) as caught:
        decoders.view(GOOD["png"](), 32, None)
    assert caught.value.status == 422
    assert decoders.view(GOOD["png"](), 32, None).shape == (3, 32, 32)


def test_a_process_takes_so_much_memory_and_no_more(decoders: Decoders) -> None:
    decoders.view(GOOD["png"](), 32, None)
    (pid,) = decoders.pids()
    lines = Path(f"/proc/{pid}/limits").read_text(encoding="ascii").splitlines()
    line = next(line for line in lines if line.startswith("Max data size"))
    assert int(line.split()[3]) < 3_000_000_000


def test_so_many_may_wait() -> None:
    limited = Decoders(Limits(decoders=1, pixels=PIXELS, waiting=2, decode_seconds=3))
    try:
        limited.view(GOOD["png"](), 32, None)
        (pid,) = limited.pids()
        os.kill(pid, signal.SIGSTOP)
        statuses: list[int] = []

        def ask() -> None:
            try:
                limited.view(GOOD["png"](), 32, None)
                statuses.append(200)
            except Refused as refusal:
                statuses.append(refusal.status)

        threads = [threading.Thread(target=ask) for _ in range(6)]
        for thread in threads:
            thread.start()
        time.sleep(0.5)
        assert statuses == [503] * 3  # one is decoded, two wait
        os.kill(pid, signal.SIGCONT)
        for thread in threads:
            thread.join(20)
        assert sorted(statuses) == [200] * 3 + [503] * 3
    finally:
        limited.close()


def test_a_process_that_cannot_start_is_not_the_pictures_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orthoproxy.server.uploads._work", isinstance)  # ends at once
    limited = Decoders(Limits(decoders=1))
    try:
        with pytest.raises(Refused) as caught:
            limited.view(GOOD["png"](), 32, None)
        assert caught.value.status == 503
        monkeypatch.undo()
        with pytest.raises(Refused):  # the one that was started meanwhile
            limited.view(GOOD["png"](), 32, None)
        assert limited.view(GOOD["png"](), 32, None).shape == (3, 32, 32)
    finally:
        limited.close()
