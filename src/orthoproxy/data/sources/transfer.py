"""Get a large file from a web server in as many attempts as it takes, each going on where the last one stopped."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator, Sequence
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from orthoproxy.core.errors import InputError
from orthoproxy.core.progress import Progress

# The standard library, since what was at hand does not resume safely: pooch (1.9) starts again, and http_get of
# huggingface_hub (2.4) asks for the rest of a file without making sure that it is still the same one.

MB = 10**6
TIMEOUT = 30.0  # seconds without a byte
PAUSES = (1.0, 5.0, 20.0)  # seconds before another attempt
PASSING = (408, 429, 500, 502, 503, 504)  # answers that may be others a little later
BLOCK = 2**20  # bytes read at once, at most


class _BrokenError(Exception):
    """An attempt failed in a way that another may not."""


class _RefusedError(Exception):
    """An attempt failed, and others would."""


class StayEncrypted(HTTPRedirectHandler):
    """Follows a server elsewhere, but never from an encrypted connection to one that is not."""

    def redirect_request(self, req: Request, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Request | None:
        """Refuse an address of another kind, or go there as usual."""
        if req.type == "https" and urlsplit(newurl).scheme.lower() != "https":
            raise _RefusedError(f"the server sends us on to {newurl}, which is not encrypted")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def transfer(url: str, size: int, part: Path, remedy: str, pauses: Sequence[float] = PAUSES) -> None:
    """Get what `part` lacks of a file, or the whole where the server has another version or sends no ranges.

    Which version a part is of, by its ETag or date, is kept beside it in ``NAME.tag`` until the part is whole. The
    content is not checked, only the length: whoever calls knows the checksum.

    Parameters
    ----------
    url
        ``https`` or ``http``.
    size
        Bytes of the whole file.
    part
        Where it grows; a part from before is gone on with.
    remedy
        What to do if it fails; ends the message.
    pauses
        Seconds before each further attempt; an attempt that got further starts the list anew.

    Raises
    ------
    InputError
        If the server cannot be reached, does not have the file, or sends something else.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     part = Path(folder, "list.txt.part")
    ...     _ = part.write_text("1 a.jpg")
    ...     transfer("https://example.org/list.txt", 7, part, "")  # whole, so nobody is asked
    """
    left, most = list(pauses), size_of(part)
    while True:
        try:
            _attempt(url, size, part)
            break
        except _BrokenError as error:
            if size_of(part) > most:
                left, most = list(pauses), size_of(part)
            if not left:
                raise _failure(url, error, remedy) from error
            print(f"{url}: {error}; another attempt in {left[0]:g} s", file=sys.stderr, flush=True)
            time.sleep(left.pop(0))
        except _RefusedError as error:
            raise _failure(url, error, remedy) from error
    _tag(part).unlink(missing_ok=True)


def size_of(path: Path) -> int:
    """Return the bytes of a file, 0 if there is none.

    Parameters
    ----------
    path
        The file.

    Examples
    --------
    >>> size_of(Path("/nowhere"))
    0
    """
    return path.stat().st_size if path.exists() else 0


def _failure(url: str, reason: Exception, remedy: str) -> InputError:
    return InputError(f"data.name: cannot download {url}: {reason}; {remedy}")


def _attempt(url: str, size: int, part: Path) -> None:
    """Get what is missing."""
    start = size_of(part)
    if start >= size:
        return
    with _ask(url, part, start) as response:
        start = _check_answer(response, size, part, start)
        with part.open("ab") as file, Progress(part.stem, size // MB, start // MB) as progress:
            file.truncate(start)
            if start == 0:
                _tag(part).write_text(_version(response), encoding="utf-8")
            for block in _blocks(response, size - start):
                file.write(block)
                start += len(block)
                progress.advance(start // MB - progress.done, "MB")
    if start < size:
        raise _BrokenError(f"the server stopped at {start} of {size} bytes")


def _ask(url: str, part: Path, start: int) -> HTTPResponse:
    headers = {"User-Agent": "orthoproxy", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
        if _tag(part).exists() and (version := _tag(part).read_text(encoding="utf-8")):
            headers["If-Range"] = version  # of another version, the server sends the whole
    try:
        return build_opener(StayEncrypted).open(Request(url, headers=headers), timeout=TIMEOUT)
    except HTTPError as error:
        error.close()
        reason = f"the server answers {error.code} {error.reason}"
        if error.code == 416:  # the file there has become shorter than the part
            part.unlink()
        raise (_BrokenError if error.code in (*PASSING, 416) else _RefusedError)(reason) from error
    except (OSError, HTTPException) as error:  # of URLError the reason says more
        raise _BrokenError(str(getattr(error, "reason", error)) or type(error).__name__) from error


def _tag(part: Path) -> Path:
    return part.with_name(f"{part.name}.tag")


def _version(response: HTTPResponse) -> str:
    """Return what tells this version of the file from others; a weak ETag does not, byte for byte."""
    tag = response.headers.get("ETag", "")
    return tag if tag.startswith('"') else response.headers.get("Last-Modified", "")


def _check_answer(response: HTTPResponse, size: int, part: Path, start: int) -> int:
    """Return the byte that the answer begins with."""
    if response.status == 206:
        given = response.headers.get("Content-Range", "")
        if not re.fullmatch(rf"bytes {start}-{size - 1}/({size}|\*)", given):
            part.unlink()
            raise _BrokenError(f"the server sends {given!r}, not the rest that was asked for")
        return start
    if response.headers.get_content_type() == "text/html":  # such as: too many have downloaded this file
        raise _RefusedError("the server sends a page, not the file")
    length = response.headers.get("Content-Length", str(size))
    if length != str(size):
        raise _RefusedError(f"the file there has {length} bytes, not {size}, so it is another one")
    return 0


def _blocks(response: HTTPResponse, most: int) -> Iterator[bytes]:
    while most > 0:
        try:
            block = response.read1(min(BLOCK, most))
        except (OSError, HTTPException) as error:
            raise _BrokenError(f"the connection broke: {error}") from error
        if not block:
            return
        most -= len(block)
        yield block
