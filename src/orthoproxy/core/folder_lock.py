"""An exclusive lock on a folder, for all processes of a job."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from orthoproxy.core.distributed import is_main, raise_together
from orthoproxy.core.errors import InputError
from orthoproxy.core.files import remove_temporaries

LOCK = ".lock"


@contextmanager
def folder_lock(folder: Path, field: str | None = None) -> Iterator[None]:
    """Lock a folder, created if missing, or raise InputError if another job or thread has; all processes call it."""
    with ExitStack() as stack:
        with raise_together():
            if is_main():
                stack.enter_context(_lock(folder, field))
                remove_temporaries(folder)
        yield


@contextmanager
def _lock(folder: Path, field: str | None) -> Iterator[None]:
    path = folder / LOCK
    lock = _acquire(path, field)
    try:
        with suppress(OSError):  # a full disk; on Windows, a locked file
            path.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
        yield
    finally:
        with suppress(OSError):
            # Removed while the lock is held: others that have opened the file see that it was removed, and open it
            # again; see UnixFileLock._finalize_locked_fd. On Windows an open file cannot be removed.
            path.unlink()
            folder.rmdir()
        lock.release()


def _acquire(path: Path, field: str | None, attempts: int = 100) -> FileLock:
    lock = FileLock(path, blocking=False, thread_local=False)
    while not lock.is_locked:
        attempts -= 1
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except (FileNotFoundError, FileExistsError) as error:
            if path.parent.is_file():
                raise InputError("is a file", field=field, path=path.parent, expected="a folder") from error
            if not attempts:  # else the previous holder removes the folder just now
                raise
        except Timeout as error:
            if attempts > 0 and not path.exists():  # released just now
                continue
            holder = ""
            with suppress(OSError):
                holder = path.read_text(encoding="utf-8", errors="replace")[:200]
            problem = f"in use by {holder or 'another process'}"
            hint = "wait until it is done, or choose another folder"
            raise InputError(problem, field=field, path=path.parent, hint=hint) from error
    return lock
