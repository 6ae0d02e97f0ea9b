"""Atomic writes, and paths that stay inside a folder."""

from __future__ import annotations

import os
import re
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from orthoproxy.core.errors import InputError

_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{32}\.tmp")


def atomic_write(path: Path, content: str | bytes | Callable[[BinaryIO], object]) -> None:
    """Replace a file's content, given as UTF-8 text, bytes or a function that writes it, all or nothing."""
    if path.exists() and not path.is_file():  # a terminal or pipe
        with path.open("wb") as file:
            _write(file, content)
        return
    path = path.resolve()  # a symbolic link stays one
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("wb") as file:
            _write(file, content)
            flush(file)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)  # on a full disk it would take what space is left
        raise
    with suppress(OSError):  # not every file system can flush a folder
        descriptor = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)  # the new name
        finally:
            os.close(descriptor)


def _write(file: BinaryIO, content: str | bytes | Callable[[BinaryIO], object]) -> None:
    if callable(content):
        content(file)
    else:
        file.write(content.encode() if isinstance(content, str) else content)


def flush(file: BinaryIO) -> None:
    """Wait until the disk has what was written."""
    file.flush()
    os.fsync(file.fileno())


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder that is renamed to `path` at the end, unless another process was faster."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", dir=path.parent) as scratch:
        folder = Path(scratch, path.name)
        folder.mkdir()
        yield folder
        try:
            folder.rename(path)
        except OSError:
            if not path.is_dir():
                raise


def remove_temporaries(folder: Path) -> None:
    """Remove what a killed `atomic_write` left in a folder and its subfolders."""
    for path in (*folder.glob(".*.tmp"), *folder.glob("*/.*.tmp")):
        if _TEMPORARY.fullmatch(path.name):
            path.unlink(missing_ok=True)


def path_inside(folder: Path, name: str) -> str | None:
    """Return the path of a listed file if its name lies inside an absolute folder, None if it leads out."""
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
