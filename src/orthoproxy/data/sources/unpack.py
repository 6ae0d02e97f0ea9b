"""Unpack an archive that others made: nothing outside the folder meant for it, and no more than was expected."""

from __future__ import annotations

import gzip
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Generator
from contextlib import closing
from functools import partial
from pathlib import Path, PureWindowsPath
from typing import IO, Any, NamedTuple

from orthoproxy.core.errors import InputError
from orthoproxy.core.progress import Progress

MB = 10**6
# RuntimeError is for a password; NotImplementedError, a kind of it, for what zipfile cannot read
DAMAGE = (tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, EOFError, RuntimeError)


class Member(NamedTuple):
    """Something in an archive: its name and size, what it is, and how to open it if it is a plain file."""

    name: str
    size: int
    kind: str  # file, folder or other
    open: Callable[[], Any]


def unpack(archive: Path, folder: str, target: Path, most_bytes: int, most_files: int) -> None:
    """Unpack one folder of a tar or zip archive.

    Every member is checked, also of other folders, which are left packed like the ``._*`` that macOS adds. Only plain
    files and folders are made, with this process's rights. As no link is, none can lead elsewhere; that is stricter
    than tarfile's `data` filter, and the same for zip.

    Parameters
    ----------
    archive
        A ``.zip``, or else a tar file, compressed by gzip or not.
    folder
        The folder at the top of the archive.
    target
        An existing folder, which `folder` is made in.
    most_bytes, most_files
        What all members may come to.

    Raises
    ------
    InputError
        If a member leads outside, is a link or a device, or exceeds the limits; or if the archive is damaged. What was
        unpacked before stays in `target`.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as root:
    ...     with zipfile.ZipFile(Path(root, "birds.zip"), "w") as packed:
    ...         packed.writestr("birds/images.txt", "1 a.jpg")
    ...     unpack(Path(root, "birds.zip"), "birds", Path(root), most_bytes=100, most_files=10)
    ...     Path(root, "birds", "images.txt").read_text()
    '1 a.jpg'
    """
    size = files = 0
    progress = Progress(f"unpack {archive.name}", archive.stat().st_size // MB)
    with archive.open("rb") as packed, closing(_members(archive, packed)) as members, progress:
        try:
            for member in members:
                size, files = size + member.size, files + 1
                parts = _safe_parts(member, archive)
                if size > most_bytes or files > most_files:
                    raise InputError(
                        f"data.root: {archive} holds more than {most_bytes // MB} MB or {most_files} files, which the "
                        "data set does not; it is not unpacked, get it again"
                    )
                if parts[:1] == (folder,) and not any(part.startswith("._") for part in parts):
                    _write(member, target.joinpath(*parts))
                progress.advance(max(0, packed.tell() // MB - progress.done), "MB")
        except DAMAGE as error:
            raise InputError(f"data.root: cannot unpack {archive}: {error}; get it again") from error


def _members(archive: Path, packed: IO[bytes]) -> Generator[Member, None, None]:
    if archive.suffix == ".zip":
        with zipfile.ZipFile(packed) as zipped:
            for info in zipped.infolist():
                # only Unix writes a type here; zipfile makes a plain file of what has none
                plain = stat.S_IFMT(info.external_attr >> 16) in (0, stat.S_IFREG)
                kind = "folder" if info.is_dir() else "file" if plain else "other"
                yield Member(info.filename, info.file_size, kind, partial(zipped.open, info))
    else:
        with tarfile.open(fileobj=packed) as tarred:
            for info in tarred:
                kind = "folder" if info.isdir() else "file" if info.isfile() else "other"
                yield Member(info.name, info.size, kind, partial(tarred.extractfile, info))


def _safe_parts(member: Member, archive: Path) -> tuple[str, ...]:
    """Return the parts of a member's name if it leads nowhere else."""
    path = PureWindowsPath(member.name)  # knows drives and both kinds of slash
    if path.anchor or ".." in path.parts:
        problem = "leads outside the folder"
    elif member.kind == "other":
        problem = "is neither a file nor a folder"
    else:
        return path.parts
    raise InputError(f"data.root: {member.name!r} in {archive} {problem}; nothing of it is used, get it again")


def _write(member: Member, path: Path) -> None:
    if member.kind == "folder":
        path.mkdir(parents=True, exist_ok=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with member.open() as content, path.open("wb") as file:
        shutil.copyfileobj(content, file)
