"""Files that are there whole or not at all, whatever happens while they are written."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from orthoproxy.core.errors import InputError
from orthoproxy.core.failpoints import failpoint


def atomic_write(path: Path, content: str | bytes | Callable[[BinaryIO], object]) -> None:
    """Write a file under another name, flush it to the disk, and rename it: a reader never sees half of it.

    Where that fails, what was there before still is, and after a power cut there is the one or the other.

    Parameters
    ----------
    path
        The file, or a terminal or a pipe. Its folder is there.
    content
        What it is to hold, text as UTF-8; or what writes it.

    Raises
    ------
    OSError
        If the disk is full, for example.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "scores.json"
    >>> atomic_write(path, "{}")
    >>> path.read_text()
    '{}'
    """
    if path.exists() and not path.is_file():  # a terminal or a pipe
        with path.open("wb") as file:
            _write(file, content, path.name)
        return
    path = path.resolve()  # where a link leads
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
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
    See `atomic_write`.
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


def path_inside(folder: Path, name: str) -> str | None:
    """Return the path of a listed file if it lies inside an absolute folder, None if it leads out.

    Decided by the name alone, so ``link/../x`` cannot mean another file than it seems. A link inside the folder may
    lead out of it: whoever made the link could also have moved the files.
    """
    if ".." not in name and not os.path.isabs(name):  # noqa: PTH117 -- many names; Path takes ten times as long
        return str(folder / name)
    path = os.path.normpath(folder / name)
    roots = (str(root).rstrip(os.sep) + os.sep for root in (os.path.normpath(folder), folder.resolve()))
    return path if path.startswith(tuple(roots)) else None


def paths_inside(folder: Path, names: Iterable[str], source: Path) -> list[str]:
    """Return the paths of the files that `source` lists; raises InputError for the first that leads out of `folder`."""
    paths = []
    for name in names:
        path = path_inside(folder, name)
        if path is None:
            problem = f"lists {name!r}, which is outside of {folder}"
            raise InputError(problem, path=source, hint="use the list as it was published")
        paths.append(path)
    return paths
