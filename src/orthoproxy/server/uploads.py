"""Decode uploads, checked by first bytes and dimensions, and images of catalogs in worker processes with a deadline."""

from __future__ import annotations

import io
import multiprocessing
import os
import queue
import resource
import signal
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from orthoproxy.core.boxes import Box
from orthoproxy.core.errors import InputError
from orthoproxy.data import evaluation_transform
from orthoproxy.data.images import MAX_MEGAPIXELS, readable_formats, to_rgb
from orthoproxy.data.metadata import despite_metadata
from orthoproxy.data.transforms import Resize
from orthoproxy.server.limits import Limits, RequestError

MEDIA_TYPES = {kind: f"image/{kind.lower()}" for kind in ("JPEG", "PNG", "WEBP", "BMP", "GIF")}
SIGNATURES = {b"\xff\xd8\xff": "JPEG", b"\x89PNG\r\n\x1a\n": "PNG", b"GIF87a": "GIF", b"GIF89a": "GIF"}
MAX_SIDE = 30_000  # pixels of an upload
MAX_PIXELS = MAX_MEGAPIXELS * 10**6  # of an image of a catalog, as `read_image` reads it
BYTES_PER_PIXEL = 40  # of decoding, rotating, blending with white and resizing together
START_SECONDS = 120.0  # for a worker to import its libraries
WAIT_SECONDS = 30.0  # for a worker to become free
Source = bytes | Path  # an upload, or an image of a catalog


def image_format(content: bytes) -> str:
    """Return an image's format by its first bytes: a key of `MEDIA_TYPES`; raise status 415 for any other."""
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "WEBP"
    if content[:2] == b"BM" and content[6:10] == bytes(4):  # the reserved field; "BM" alone begins many a text
        return "BMP"
    for signature, name in SIGNATURES.items():
        if content.startswith(signature):
            return name
    raise RequestError("not an image in a supported format", status=415, field="image", expected=", ".join(MEDIA_TYPES))


def open_image(source: Source, formats: tuple[str, ...], max_pixels: int, max_side: int) -> Image.Image:
    """Open an image of one of these formats and a supported size, without decoding its pixels."""
    expected = f"at most {max_pixels:,} pixels, and {max_side:,} on a side"
    try:
        image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=formats)
    except Image.DecompressionBombError as error:
        raise RequestError("too many pixels", status=413, field="image", expected=expected) from error
    width, height = image.size
    if width * height > max_pixels or max(width, height) > max_side:
        raise RequestError(f"{width} x {height} pixels", status=413, field="image", expected=expected)
    return image


def _in_worker(task: Callable[..., bytes], source: Source, limits: tuple[Any, ...], *arguments: Any) -> bytes:
    """Run a task in a worker process; anything that a broken image makes it raise becomes an `InputError`."""
    try:
        return despite_metadata(
            lambda plain: task(open_image(plain or source, *limits), *arguments),
            lambda: source if isinstance(source, bytes) else source.read_bytes(),
        )
    except InputError:
        raise
    except MemoryError:
        raise RequestError("decoding the image takes too much memory", status=413, field="image") from None
    except Exception:  # Pillow raises many types for broken files; they may not even pickle
        raise RequestError("the image is broken", field="image") from None


def _decode(image: Image.Image, box: Box | None) -> Image.Image:
    image = to_rgb(image)
    return image.crop(box.edges(image.size)) if box else image


def _model_input(image: Image.Image, image_size: int, resize: Resize, box: Box | None) -> bytes:
    return evaluation_transform(image_size, resize)(_decode(image, box)).tobytes()


def _thumbnail(image: Image.Image, side: int, box: Box | None) -> bytes:
    if box is None:
        image.draft("RGB", (side, side))  # a JPEG decodes faster to a half, quarter or eighth
    image = _decode(image, box)
    image.thumbnail((side, side), Image.Resampling.LANCZOS, reducing_gap=3.0)
    out = io.BytesIO()
    image.save(out, "WEBP", quality=82, method=2)
    return out.getvalue()


def _jpeg(image: Image.Image) -> bytes:
    out = io.BytesIO()
    to_rgb(image).save(out, "JPEG", quality=90)
    return out.getvalue()


def _end_with_server() -> None:
    """Wait for the end of the server, also if it is killed: this process holds the pipes that it reads from open."""
    if server := multiprocessing.parent_process():
        server.join()
        os._exit(1)


def _start_worker(max_pixels: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server
    threading.Thread(target=_end_with_server, daemon=True).start()
    Image.MAX_IMAGE_PIXELS = max_pixels
    warnings.simplefilter("ignore")
    with suppress(OSError, ValueError):  # where the system has no such limit, or a lower one
        status = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        used = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmData:"))
        limit = used + max_pixels * BYTES_PER_PIXEL + 500_000_000
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


class _Worker:
    """One decoding process behind an executor of its own, so that it can be killed without losing others' work."""

    def __init__(self, context: Any, max_pixels: int) -> None:
        self.executor = ProcessPoolExecutor(1, context, initializer=_start_worker, initargs=(max_pixels,))
        self.pid: Future[int] = self.executor.submit(os.getpid)

    def run(self, seconds: float, *call: Any) -> bytes:
        self.pid.result(START_SECONDS)  # the deadline starts once the worker is up
        return self.executor.submit(_in_worker, *call).result(seconds)

    def kill(self) -> None:
        for process in list((self.executor._processes or {}).values()):  # it may not have told its id yet
            process.kill()
        self.executor.shutdown(wait=False, cancel_futures=True)


class DecoderPool:
    """Processes that decode images, each with a deadline and a memory limit; one that hangs or dies is replaced."""

    def __init__(self, limits: Limits) -> None:
        self.limits, self._most_pixels = limits, max(limits.pixels, MAX_PIXELS)
        # a fork of a process with threads may deadlock; the fork server has none, and has imported everything
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([__name__])
        self._idle: queue.LifoQueue[_Worker] = queue.LifoQueue()
        resource_tracker.ensure_running()  # unblocks signals
        try:
            with ThreadPoolExecutor(1) as thread:  # which Ctrl-C does not stop halfway
                thread.submit(self._start).result()
        except BaseException:
            self.close()
            raise

    def _start(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # for the fork server, which inherits it
        for _ in range(self.limits.decode_workers):
            self._idle.put(_Worker(self._context, self._most_pixels))

    def model_input(
        self, source: Source, image_size: int, resize: Resize, box: Box | None = None
    ) -> UInt8[np.ndarray, "3 S S"]:
        """Decode an image to the pixels that a model takes, the same as those of the file."""
        pixels = self._run(_model_input, source, image_size, resize, box)
        return np.frombuffer(pixels, dtype=np.uint8).reshape(3, image_size, image_size).copy()

    def thumbnail(self, source: Source, side: int, box: Box | None = None) -> bytes:
        """Return a small copy of an image or its box, as WebP without metadata."""
        return self._run(_thumbnail, source, side, box)

    def jpeg(self, source: Source) -> bytes:
        """Return an image as JPEG, upright and without metadata."""
        return self._run(_jpeg, source)

    def _run(self, task: Callable[..., bytes], source: Source, *arguments: Any) -> bytes:
        limits = (readable_formats(), MAX_PIXELS, MAX_PIXELS)
        if isinstance(source, bytes):
            if len(source) > self.limits.upload_bytes:
                expected = f"at most {self.limits.upload_bytes:,} bytes"
                raise RequestError(f"{len(source):,} bytes", status=413, field="image", expected=expected)
            limits = ((image_format(source),), self.limits.pixels, MAX_SIDE)
        try:
            worker = self._idle.get(timeout=WAIT_SECONDS)
        except queue.Empty:
            raise RequestError("too many images to decode", status=503, hint="try again in a second") from None
        try:
            return worker.run(self.limits.decode_seconds, task, source, limits, *arguments)
        except (TimeoutError, BrokenProcessPool) as error:
            started = worker.pid.done() and worker.pid.exception() is None
            worker.kill()
            worker = _Worker(self._context, self._most_pixels)
            if not started:
                raise RequestError("images cannot be decoded at the moment", status=503) from error
            reason = "took too long" if isinstance(error, TimeoutError) else "failed"
            raise RequestError(f"decoding the image {reason}", field="image") from None
        finally:
            self._idle.put(worker)

    def close(self) -> None:
        """Kill the workers."""
        while not self._idle.empty():
            self._idle.get_nowait().kill()
