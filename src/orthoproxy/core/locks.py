"""One job at a time writes to a folder."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from orthoproxy.core.distributed import is_main, raise_together
from orthoproxy.core.errors import InputError

try:
    import fcntl
except ImportError:  # Windows; there, nothing keeps two jobs apart
    fcntl = None


@contextmanager
def alone_in(folder: Path, name: str = "--out") -> Iterator[None]:
    """Keep other jobs out of a folder while this one writes to it; all processes of the job call it.

    The main process holds a lock on the file ``.lock`` in the folder. The system takes the lock away when the process
    ends, however it ends, so that no dead job keeps others out. Both are removed at the end, the folder if it is empty.

    Parameters
    ----------
    folder
        Made if it is not there.
    name
        What gave the folder, for the error.

    Raises
    ------
    InputError
        If another job is writing to it; in the other processes `RemoteProcessError`.

    Examples
    --------
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> with alone_in(folder):
    ...     (folder / "scores.json").write_text("{}")
    2
    """
    with ExitStack() as stack:
        with raise_together():
            if is_main():
                stack.enter_context(locked(folder, name))
        yield


@contextmanager
def locked(folder: Path, name: str = "--out") -> Iterator[None]:
    """Do what `alone_in` does, in one process.

    Parameters
    ----------
    folder, name
        As there.

    Raises
    ------
    InputError
        As there.

    Examples
    --------
    See `alone_in`.
    """
    if fcntl is None:
        folder.mkdir(parents=True, exist_ok=True)
        yield
        return
    path = folder / ".lock"
    descriptor = _lock(path, name)
    try:
        os.ftruncate(descriptor, 0)
        with suppress(OSError):  # a full disk
            os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
        yield
    finally:
        with suppress(OSError):
            path.unlink(missing_ok=True)
            folder.rmdir()  # unless there is something in it
        os.close(descriptor)


def _lock(path: Path, name: str) -> int:
    """Open and lock a file; again, where the job that held it has just removed it, or the folder."""
    assert fcntl is not None
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except (FileNotFoundError, FileExistsError):
            if path.parent.exists() and not path.parent.is_dir():
                raise
            continue
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # unlike flock, not passed on to workers
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), path.stat()):
                    return descriptor
        except BlockingIOError as error:
            holder = os.read(descriptor, 1000).decode(errors="replace")
            os.close(descriptor)
            raise InputError(
                f"{name}: another job is writing to {path.parent}{f': {holder}' if holder else ''}\n"
                "wait for it, or give another folder"
            ) from error
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
