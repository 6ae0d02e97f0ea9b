"""Pictures from strangers: told by their first bytes, measured by their header, decoded where it does no harm."""

from __future__ import annotations

import io
import multiprocessing
import signal
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from orthoproxy.data import evaluation_transform, to_rgb
from orthoproxy.data.transforms import Resize
from orthoproxy.server.limits import Limits, Refused, Turns

try:
    import resource
except ImportError:  # not on Windows
    resource = None

MEDIA_TYPES = {
    "JPEG": "image/jpeg",
    "PNG": "image/png",
    "WEBP": "image/webp",
    "BMP": "image/bmp",
    "GIF": "image/gif",
}
STARTS = (("JPEG", b"\xff\xd8\xff"), ("PNG", b"\x89PNG\r\n\x1a\n"), ("GIF", b"GIF87a"), ("GIF", b"GIF89a"))
LONGEST_SIDE = 30_000  # pixels; a strip one pixel high is resized to something enormous
FLATTEST = 200  # how many times longer than wide, for the same reason
BYTES_A_PIXEL = 40  # decoding, turning upright, putting on white and resizing, together
START_SECONDS = 120.0  # for the first process, which imports the libraries


def picture_format(start: bytes) -> str | None:
    """Tell a picture's format by its first bytes, whatever its name says.

    Parameters
    ----------
    start
        At least 12 bytes of the file.

    Returns
    -------
    str or None
        A key of `MEDIA_TYPES`; None for all else.

    Examples
    --------
    >>> picture_format(b"GIF89a.........."), picture_format(b"<svg onload='...'>")
    ('GIF', None)
    """
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return "WEBP"
    if start[:2] == b"BM" and start[6:10] == bytes(4):  # the reserved field is zero; "BM" alone begins many a word
        return "BMP"
    return next((name for name, magic in STARTS if start.startswith(magic)), None)


def required_format(content: bytes) -> str:
    """Return a picture's format.

    Parameters
    ----------
    content
        The file.

    Raises
    ------
    Refused
        415 for another format.

    Examples
    --------
    >>> required_format(b"BM" + bytes(60))
    'BMP'
    """
    name = picture_format(content[:16])
    if name is None:
        raise Refused(415, f"no picture of a format that is accepted here: {', '.join(MEDIA_TYPES)}")
    return name


def open_picture(content: bytes, pixels: int) -> Image.Image:
    """Open a picture of an accepted format and size; nothing is decoded yet.

    Parameters
    ----------
    content
        The file.
    pixels
        The most that it may have.

    Returns
    -------
    PIL.Image.Image
        Of an animation, the first frame.

    Raises
    ------
    Refused
        415 for another format, 413 for too many pixels, 422 for what is broken.

    Examples
    --------
    >>> open_picture(b"plain words", 1000)
    Traceback (most recent call last):
    ...
    orthoproxy.server.limits.Refused: (415, 'no picture of a format that is accepted here: JPEG, PNG, WEBP, BMP, GIF')
    """
    name = required_format(content)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of bombs, which are refused below, and of odd metadata
            image = Image.open(io.BytesIO(content), formats=[name])
    except Image.DecompressionBombError as error:
        raise Refused(413, f"the picture has more than the {pixels:,} pixels that are accepted here") from error
    except Exception as error:  # of many types, as formats are broken in many ways
        raise Refused(422, f"the picture is broken: it begins as {name} and does not go on as one") from error
    width, height = image.size
    if width * height > pixels or max(width, height) > LONGEST_SIDE:
        raise Refused(413, f"the picture has {width} x {height} pixels; accepted are {pixels:,} in all")
    if max(width, height) > FLATTEST * min(width, height):
        raise Refused(422, f"the picture has {width} x {height} pixels, which is too narrow to look at")
    return image


def _view(content: bytes, pixels: int, image_size: int, resize: Resize) -> bytes:
    image = to_rgb(open_picture(content, pixels))
    return evaluation_transform(image_size, resize)(image).numpy().tobytes()


def _thumbnail(content: bytes, pixels: int, side: int) -> bytes:
    image = open_picture(content, pixels)
    image.draft("RGB", (side, side))  # a JPEG decodes faster to a half, quarter or eighth
    image = to_rgb(image)
    image.thumbnail((side, side), Image.Resampling.LANCZOS, reducing_gap=3.0)
    out = io.BytesIO()
    image.save(out, "WEBP", quality=82, method=2)
    return out.getvalue()


TASKS: dict[str, Callable[..., bytes]] = {"view": _view, "thumbnail": _thumbnail}


def _work(connection: Connection, pixels: int) -> None:
    """What a decoding process does: bytes in, bytes out, two of them the status. Nothing that it sends is unpickled."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the server's
    Image.MAX_IMAGE_PIXELS = pixels
    _hold_memory(pixels * BYTES_A_PIXEL + 500_000_000)
    warnings.simplefilter("ignore")
    connection.send_bytes(b"ready")
    while True:
        try:
            task, content, arguments = connection.recv()
        except (EOFError, OSError):
            return
        try:
            status, answer = 200, TASKS[task](content, pixels, *arguments)
        except Refused as refusal:
            status, answer = refusal.status, refusal.reason.encode()
        except MemoryError:
            status, answer = 413, b"the picture takes more memory than there is for it"
        except Exception:  # of many types
            status, answer = 422, b"the picture is broken: it cannot be decoded"
        connection.send_bytes(status.to_bytes(2, "big") + answer)


def _hold_memory(extra: int) -> None:
    """Let this process take so many bytes more than it has, where the system can hold it to that."""
    if resource is None:
        return
    with suppress(OSError, ValueError, StopIteration):
        with open("/proc/self/status", encoding="ascii") as status:  # noqa: PTH123
            held = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmData:"))
        resource.setrlimit(resource.RLIMIT_DATA, (held + extra, held + extra))


class _Process:
    """One process that decodes, started again when it had to be ended."""

    def __init__(self, pixels: int) -> None:
        methods = multiprocessing.get_all_start_methods()
        # a fork of this process, with its threads, might hang; the fork server has imported everything and has none
        self._context: Any = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
        if "forkserver" in methods:
            self._context.set_forkserver_preload([__name__])
        self.pixels = pixels
        self.ready = False
        self.start()

    def start(self) -> None:
        """Start; it is ready some time later."""
        ours, theirs = self._context.Pipe()
        self.process = self._context.Process(target=_work, args=(theirs, self.pixels), daemon=True)
        self.process.start()
        theirs.close()
        self.connection, self.ready = ours, False

    def end(self) -> None:
        """End it, whatever it does."""
        self.connection.close()
        self.process.kill()
        self.process.join()

    def ask(self, seconds: float, task: str, content: bytes, *arguments: object) -> bytes:
        """Have a task done within so many seconds."""
        try:
            self._wait_for_start()
            until = time.monotonic() + seconds
            self.connection.send((task, content, arguments))
            if not self.connection.poll(max(until - time.monotonic(), 0)):
                raise TimeoutError
            answer = self.connection.recv_bytes()
        except TimeoutError:
            self._anew()
            raise Refused(422, f"the picture took more than {seconds:g} seconds to decode") from None
        except (EOFError, OSError):  # it ended, perhaps for want of memory
            self._anew()
            raise Refused(422, "the picture is broken: decoding it failed") from None
        except BaseException:
            self._anew()  # an answer that nobody waits for must not be taken for the next one's
            raise
        if (status := int.from_bytes(answer[:2], "big")) != 200:
            raise Refused(status, answer[2:].decode())
        return answer[2:]

    def _wait_for_start(self) -> None:
        if self.ready:
            return
        try:
            if not self.connection.poll(START_SECONDS):
                raise EOFError
            self.ready = self.connection.recv_bytes() == b"ready"
        except (EOFError, OSError) as error:
            raise Refused(503, "pictures cannot be decoded at the moment") from error

    def _anew(self) -> None:
        self.end()
        self.start()


class Decoders:
    """Processes that decode pictures, each within a time and an amount of memory.

    Parameters
    ----------
    limits
        Sizes, times and the number of processes.

    Examples
    --------
    >>> decoders = Decoders(Limits(decoders=1))
    >>> file = io.BytesIO()
    >>> Image.new("RGB", (60, 40), "teal").save(file, "PNG")
    >>> decoders.view(file.getvalue(), image_size=16, resize=None).shape
    (3, 16, 16)
    >>> decoders.close()
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._turns = Turns(limits.decoders, limits.waiting, limits.wait_seconds)
        self._idle = [_Process(limits.pixels) for _ in range(limits.decoders)]
        self._lock = threading.Lock()

    def view(self, content: bytes, image_size: int, resize: Resize) -> UInt8[np.ndarray, "3 S S"]:
        """Decode a picture to the pixels that a model sees.

        Parameters
        ----------
        content
            The file.
        image_size, resize
            The model's; see `data.evaluation_transform`.

        Returns
        -------
        numpy.ndarray
            RGB; the same as reading the file gives.

        Raises
        ------
        Refused
            413, 415, 422 for the picture, 503 if too many wait.
        """
        pixels = self._ask("view", content, image_size, resize)
        return np.frombuffer(pixels, dtype=np.uint8).reshape(3, image_size, image_size).copy()

    def thumbnail(self, content: bytes, side: int) -> bytes:
        """Make a small copy of a picture.

        Parameters
        ----------
        content
            The file.
        side
            The longer one's pixels, at most.

        Returns
        -------
        bytes
            A WebP file without metadata.

        Raises
        ------
        Refused
            As from `view`.
        """
        return self._ask("thumbnail", content, side)

    def _ask(self, task: str, content: bytes, *arguments: object) -> bytes:
        if len(content) > self.limits.upload_bytes:
            raise Refused(413, f"the picture has more than the {self.limits.upload_bytes:,} bytes accepted here")
        required_format(content)  # no turn for what can be told at once
        with self._turns.turn():
            with self._lock:
                process = self._idle.pop()
            try:
                return process.ask(self.limits.decode_seconds, task, content, *arguments)
            finally:
                with self._lock:
                    self._idle.append(process)

    def close(self) -> None:
        """End the processes."""
        for process in self._idle:
            process.end()

    def pids(self) -> Sequence[int]:
        """Return the idle processes' numbers, for those who watch them."""
        return [process.process.pid or 0 for process in self._idle]
