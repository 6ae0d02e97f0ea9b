"""The exception that stands for bad input, what the file system refuses turned into it, and the loss of a worker."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class InputError(ValueError):
    """Something the user gave cannot be used: a file, a field, an argument.

    The message names it and the remedy in one or two lines. The command line prints it without a traceback and exits
    with code 2; in Python it is a `ValueError`.

    Examples
    --------
    >>> raise InputError("data.root: no folder 'birds'; give an existing folder with one sub-folder a class")
    Traceback (most recent call last):
    ...
    orthoproxy.errors.InputError: data.root: no folder 'birds'; give an existing folder with one sub-folder a class
    """


class WorkerLost(RuntimeError):  # noqa: N818 -- what happened to the worker
    """A process that reads images was killed; nothing of the input need be wrong.

    The command line prints the message without a traceback and exits with code 1.

    Examples
    --------
    >>> raise WorkerLost("a process that reads images was killed (SIGKILL)")
    Traceback (most recent call last):
    ...
    orthoproxy.errors.WorkerLost: a process that reads images was killed (SIGKILL)
    """


@contextmanager
def refusals_of_the_disk(place: str | Path, then: str) -> Iterator[None]:
    """Turn what the file system refuses at a place into bad input, and say what to do then.

    Parameters
    ----------
    place
        Where files are written.
    then
        What to do after some space was freed.

    Raises
    ------
    InputError
        For a full disk, missing permissions, or a path that cannot be.

    Examples
    --------
    >>> with refusals_of_the_disk("runs/x", "run it again"):
    ...     raise OSError(errno.ENOSPC, "No space left on device")
    Traceback (most recent call last):
    ...
    orthoproxy.errors.InputError: runs/x: no space left on device; free some space and run it again
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            remedy = f"free some space and {then}"
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            remedy = "change its permissions, or give another path"
        elif error.errno in (errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG):
            remedy = "give another path"
        else:
            raise
        raise InputError(f"{error.filename or place}: {os.strerror(error.errno).lower()}; {remedy}") from error
