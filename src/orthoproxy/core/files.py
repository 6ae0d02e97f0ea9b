"""Files that are there whole or not at all, whatever happens while they are written."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from orthoproxy.core.failpoints import failpoint


def write_whole(path: Path, content: str | bytes | Callable[[BinaryIO], object], others: bool = False) -> None:
    """Write a file under another name, flush it to the disk, and rename it: a reader never sees half of it.

    Where that fails, what was there before still is, and after a power cut there is the one or the other.

    Parameters
    ----------
    path
        The file, or a terminal or a pipe. Its folder is there.
    content
        What it is to hold, text as UTF-8; or what writes it.
    others
        Other processes may write the same file at the same time: each to a name of its own, and the last one stays.

    Raises
    ------
    OSError
        If the disk is full, for example.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "scores.json"
    >>> write_whole(path, "{}")
    >>> path.read_text()
    '{}'
    """
    if path.exists() and not path.is_file():  # a terminal or a pipe
        with path.open("wb") as file:
            _write(file, content, path.name)
        return
    path = path.resolve()  # where a link leads
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp" if others else f"{path.name}.tmp")
    try:
        with unfinished.open("wb") as file:
            _write(file, content, path.name)
            failpoint(f"{path.name} unflushed")
            flush(file)
        failpoint(f"{path.name} flushed")
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)  # on a full disk it would take what space is left
        raise
    failpoint(f"{path.name} renamed")
    _flush_folder(path.parent)


def _write(file: BinaryIO, content: str | bytes | Callable[[BinaryIO], object], name: str) -> None:
    if callable(content):
        failpoint(f"{name} half", lambda: _flush_half_of(content, file))
        content(file)
        return
    data = content.encode() if isinstance(content, str) else content
    failpoint(f"{name} half", lambda: flush_half(file, data))
    file.write(data)


def _flush_half_of(content: Callable[[BinaryIO], object], file: BinaryIO) -> None:
    content(file)
    file.flush()
    file.truncate(file.tell() // 2)


def flush_half(file: BinaryIO, data: bytes) -> None:
    """Write the first half, as far as a process gets that is killed while it writes.

    Parameters
    ----------
    file
        Open.
    data
        What was to be written.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryFile() as file:
    ...     flush_half(file, b"words")
    ...     file.tell()
    2
    """
    file.write(data[: len(data) // 2])
    file.flush()


def flush(file: BinaryIO) -> None:
    """Wait until the disk has what was written.

    Parameters
    ----------
    file
        Open.

    Examples
    --------
    See `write_whole`.
    """
    file.flush()
    os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    """Wait until the disk has the new name too; not every file system can be asked to."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def is_file(path: Path) -> bool:
    """Tell whether there is a file; a name that no file can have, one too long, say, is of none.

    Parameters
    ----------
    path
        Where.

    Examples
    --------
    >>> is_file(Path("x" * 10_000))
    False
    """
    try:
        return path.is_file()
    except OSError:
        return False
