"""Uploaded images: decoded to the pixels of the file, or rejected; hangs, crashes and bombs do no harm."""

import io
import os
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from errors import error_of
from PIL import Image

from orthoproxy.data import evaluation_transform
from orthoproxy.data.images import read_image
from orthoproxy.server.limits import Limits, RequestError
from orthoproxy.server.uploads import DecoderPool

PIXELS = 4_000_000
SVG = b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>"


def noise(width: int = 60, height: int = 40) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, size=(height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def saved(image: Image.Image, format: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, extra: bytes = b"", data: bytes | None = None) -> bytes:
    """A PNG whose header says what it is told to say."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    pixels = zlib.compress(bytes(100)) if data is None else data
    return b"\x89PNG\r\n\x1a\n" + header + extra + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def exif(tag: int, value: object) -> Image.Exif:
    made = Image.Exif()
    made[tag] = value
    return made


def inflated() -> bytes:
    return zlib.compress(bytes(200_000_000), 9)


GOOD: dict[str, Callable[[], bytes]] = {
    "jpeg": lambda: saved(noise(), "JPEG"),
    "rotated jpeg": lambda: saved(noise(), "JPEG", exif=exif(0x0112, 6)),
    "png with alpha": lambda: saved(noise().convert("RGBA"), "PNG"),
    "webp": lambda: saved(noise(), "WEBP", lossless=True),
    "bmp": lambda: saved(noise(), "BMP"),
    "png with more pixels than announced": lambda: png(1500, 1500, data=inflated()),
    "animated gif": lambda: saved(noise(), "GIF", save_all=True, append_images=[Image.new("RGB", (60, 40))]),
}
BAD: dict[str, tuple[Callable[[], bytes], int]] = {
    "svg": (lambda: SVG, 415),
    "eps, which would start a program": (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", 415),
    "text that begins as a bitmap": (lambda: b"BM is a film prize", 415),
    "jpeg cut off": (lambda: saved(noise(400, 400), "JPEG")[:9000], 422),
    "png cut off": (lambda: saved(noise(), "PNG")[:900], 422),
    "svg behind a png's first bytes": (lambda: b"\x89PNG\r\n\x1a\n" + SVG, 422),
    "more bytes than the limit": (lambda: GOOD["jpeg"]() + bytes(8_000_000), 413),
    "a line of pixels": (lambda: png(20_000, 1), 422),
    "bomb: a png of gigapixels": (lambda: png(100_000, 100_000), 413),
    "bomb: a png just above the limit": (lambda: png(2001, 2000), 413),
    "bomb: a gif": (lambda: b"GIF89a" + struct.pack("<HH", 65535, 65535) + saved(noise(), "GIF")[10:], 413),
    "bomb: a text chunk": (lambda: png(50, 50, chunk(b"zTXt", b"a\0\0" + inflated())), 422),
}


@pytest.fixture(scope="module")
def pool() -> Iterator[DecoderPool]:
    started = DecoderPool(Limits(decode_workers=1, pixels=PIXELS, upload_bytes=8_000_000, decode_seconds=60))
    yield started
    started.close()


def worker_pid(pool: DecoderPool) -> int:
    return pool._idle.queue[0].pid.result(120)


def status_of(decode: Callable[..., object], *arguments: object) -> int:
    error = error_of(decode, *arguments)
    assert isinstance(error, RequestError) and error.field == "image"
    return error.status


@pytest.mark.parametrize("name", GOOD)
def test_an_accepted_image_becomes_the_pixels_of_its_file(name: str, pool: DecoderPool, tmp_path: Path) -> None:
    content = GOOD[name]()
    (tmp_path / "image").write_bytes(content)
    expected = evaluation_transform(32, None)(read_image(tmp_path / "image"))
    np.testing.assert_array_equal(pool.model_input(content, 32, None), expected)


@pytest.mark.parametrize("name", BAD)
def test_other_files_are_rejected_and_the_worker_survives(name: str, pool: DecoderPool) -> None:
    make, status = BAD[name]
    content, pid = make(), worker_pid(pool)
    assert status_of(pool.model_input, content, 32, None) == status_of(pool.thumbnail, content, 160) == status
    assert worker_pid(pool) == pid
    assert pool.thumbnail(GOOD["jpeg"](), 20)


def test_thumbnails_are_small_and_without_metadata(pool: DecoderPool) -> None:
    content = saved(noise(900, 300), "JPEG", exif=exif(0x010E, "taken at a secret place"))
    small = pool.thumbnail(content, 160)
    with Image.open(io.BytesIO(small)) as image:
        assert (image.format, image.size) == ("WEBP", (160, 53))
    assert b"secret" in content and b"secret" not in small


def test_a_worker_has_a_memory_limit(pool: DecoderPool) -> None:
    lines = Path(f"/proc/{worker_pid(pool)}/limits").read_text(encoding="ascii").splitlines()
    limit = next(line for line in lines if line.startswith("Max data size"))
    assert int(limit.split()[3]) < 5_000_000_000


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_worker_that_dies_or_hangs_is_replaced(number: int) -> None:
    pool = DecoderPool(Limits(decode_workers=1, pixels=PIXELS, decode_seconds=0.5))
    pid, worker = worker_pid(pool), pool._idle.queue[0]
    os.kill(pid, number)
    assert status_of(pool.thumbnail, GOOD["jpeg"](), 20) == 422
    assert worker_pid(pool) != pid
    worker.executor.shutdown(wait=True)
    end = time.monotonic() + 30
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < end
        time.sleep(0.1)
    pool.close()


SERVER = """
import time
from orthoproxy.server.limits import Limits
from orthoproxy.server.uploads import DecoderPool
pool = DecoderPool(Limits(decode_workers=2))
print(*(worker.pid.result() for worker in pool._idle.queue), flush=True)
time.sleep(3600)
"""


def test_nothing_is_left_of_a_server_that_is_killed(request: pytest.FixtureRequest) -> None:
    server = subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE, start_new_session=True)

    def kill_all() -> None:
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)

    request.addfinalizer(kill_all)
    assert server.stdout is not None and len(server.stdout.readline().split()) == 2
    server.kill()
    server.communicate(timeout=60)  # until no process has the pipe open
