"""Image files that take for ever, and workers that die: both become an error that names the file.

A file is read within a limit, `ORTHOPROXY_READ_SECONDS`, or counts as one that cannot be read. Where the reading waits,
such as for a pipe or a disk that does not answer, or Python decodes, an alarm ends it. A decoder that loops in C never
looks at alarms. In a worker, the system then ends the worker once it has computed for so long.

Each worker notes the file it is at, in memory that it shares with the process that started it. So when it dies, whether
of that, of lack of memory or of a decoder's fault, the file can be named.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from orthoproxy.core.errors import InputError, WorkerLost

T = TypeVar("T")

VARIABLE = "ORTHOPROXY_READ_SECONDS"
LIMIT = 60.0  # of the reading of one file, unless the variable says otherwise
GRACE = 1.0  # seconds of computing that a worker has beyond the limit, so that an alarm comes first
LONGEST_PATH = 4096  # bytes
NOTE = np.dtype([("pid", "<i8"), ("length", "<i8"), ("path", "u1", LONGEST_PATH)])


class _TooLong(BaseException):  # no Exception, which a decoder may catch
    pass


_note: np.ndarray | None = None  # this process's, if it is a worker


def read_seconds() -> float:
    """Return how long the reading of one file may take, in seconds; 0 for as long as it wants.

    Raises
    ------
    InputError
        If the environment variable is no such number.

    Examples
    --------
    >>> read_seconds()
    60.0
    """
    given = os.environ.get(VARIABLE) or str(LIMIT)
    try:
        seconds = float(given)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < 10**8:
        raise InputError(f"{VARIABLE}: {given!r} is no number of seconds; give one such as 60, or 0 for no limit")
    return seconds


@contextmanager
def reading(path: str | Path) -> Iterator[None]:
    """Read a file in the block, within the limit; in a worker, note that this is the file it is at.

    Outside a process's main thread there are no alarms, and no limit.

    Parameters
    ----------
    path
        The image file.

    Raises
    ------
    InputError
        If the block takes longer than `read_seconds`.

    Examples
    --------
    >>> with reading("a.png"):
    ...     pass
    """
    seconds = read_seconds()
    _take_note(path)
    try:
        if seconds and hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread():
            with _alarm(seconds):
                yield
        else:
            yield
    except _TooLong:
        raise InputError(f"cannot read the image {path}: {_too_long(seconds)}") from None
    finally:
        _take_note("")


def _too_long(seconds: float) -> str:
    return f"reading it takes longer than {seconds:g} seconds, which {VARIABLE} allows"


@contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    """Raise `_TooLong` after some seconds; who else had set an alarm gets it back."""

    def ring(*_: Any) -> None:
        raise _TooLong

    handler, begun = signal.signal(signal.SIGALRM, ring), time.monotonic()
    before = signal.setitimer(signal.ITIMER_REAL, seconds, GRACE)  # again and again, should somebody catch it
    if _note is not None:
        signal.setitimer(signal.ITIMER_PROF, seconds + GRACE)  # its signal ends the process
    try:
        yield
    finally:
        if _note is not None:
            signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL if handler is None else handler)
        if before[0]:
            signal.setitimer(signal.ITIMER_REAL, max(1e-3, before[0] - (time.monotonic() - begun)), before[1])


def _take_note(path: str | Path) -> None:
    if _note is not None:
        written = os.fsencode(path)[:LONGEST_PATH]
        _note["length"] = 0  # whoever reads it meanwhile finds no half of a path
        _note["path"][: len(written)] = np.frombuffer(written, np.uint8)
        _note["length"] = len(written)


def stamps(paths: Iterable[str]) -> list[tuple[int, int]]:
    """Return size and time of change of files, to find out later which were replaced; reading them would take hours.

    Parameters
    ----------
    paths
        Image files.

    Returns
    -------
    list
        Of bytes and nanoseconds; of what is not there, two negative numbers.

    Examples
    --------
    >>> stamps(["nowhere.png"])
    [(-1, -1)]
    """
    found = []
    for path in paths:
        try:
            stat = Path(path).stat()
        except OSError:
            found.append((-1, -1))
        else:
            found.append((stat.st_size, stat.st_mtime_ns))
    return found


class Notes:
    """What the workers of a loader note; given to it as its `worker_init_fn`.

    Parameters
    ----------
    workers
        Their number.

    Examples
    --------
    >>> Notes(2).file_of(1)
    ''
    """

    def __init__(self, workers: int) -> None:
        self.shared = torch.zeros(workers, NOTE.itemsize, dtype=torch.uint8).share_memory_()

    def __call__(self, worker: int) -> None:
        """Begin to take notes, in a worker."""
        global _note
        _note = self._of(worker)

    def file_of(self, worker: int) -> str:
        """Return the file that a worker is or was at; empty for none."""
        note = self._of(worker)
        return os.fsdecode(note["path"][: note["length"]].tobytes())

    def _of(self, worker: int) -> Any:
        return self.shared[worker].numpy().view(NOTE)[0]


def worker_options(workers: int) -> dict[str, Any]:
    """Return the options of a `DataLoader` with so many workers that `watched` can watch.

    Parameters
    ----------
    workers
        Processes that read images; 0 for this one.

    Examples
    --------
    >>> worker_options(0)
    {'num_workers': 0}
    """
    return {"num_workers": workers, "worker_init_fn": Notes(workers)} if workers else {"num_workers": 0}


def watched(loader: Iterable[T]) -> Iterator[T]:
    """Yield a loader's batches; a worker that dies is told of by the file it was at.

    It is told of when the next batch is asked for, and never in the midst of what is done with the one before.

    Parameters
    ----------
    loader
        A `DataLoader` made with `worker_options`, or anything else that yields batches.

    Raises
    ------
    WorkerLost
        If a worker was killed from outside.
    InputError
        If a file killed it: because its decoder came to no end, or crashed.

    Examples
    --------
    >>> list(watched([1, 2]))
    [1, 2]
    """
    batches = None
    try:
        with _told_when_asked():
            batches = iter(loader)
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            yield batch
    except (RuntimeError, OSError, EOFError) as error:  # the latter from a batch that went with its worker
        lost = None if " in DataLoader worker process " in str(error) else _death(loader, batches)
        if lost is None:
            raise
        raise lost from error


@contextmanager
def _told_when_asked() -> Iterator[None]:
    """Take PyTorch's handler away, if it is set here, that raises wherever this process is when a worker dies.

    That may be in the midst of a step or of a file. Without it, the death is found when a batch is waited for.
    """
    if not hasattr(signal, "SIGCHLD") or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        if _is_of_pytorch(signal.getsignal(signal.SIGCHLD)):
            signal.signal(signal.SIGCHLD, signal.SIG_DFL if before is None or _is_of_pytorch(before) else before)


def _is_of_pytorch(handler: Any) -> bool:
    return getattr(handler, "__module__", "").startswith("torch.utils.data")


def _death(loader: Iterable[Any], batches: Iterator[Any] | None) -> Exception | None:
    """The error for the first worker that has died, if one has."""
    workers = getattr(batches or getattr(loader, "_iterator", None), "_workers", [])  # else those of earlier epochs
    for worker in workers:
        worker.join(0.2)  # a moment, since the death of the one that matters was noticed just now
    codes = [worker.exitcode for worker in workers]
    number = next((number for number, code in enumerate(codes) if code), None)
    if number is None:
        return None
    notes = getattr(loader, "worker_init_fn", None)
    file = notes.file_of(number) if isinstance(notes, Notes) else ""
    return _error(codes[number], file)


def _error(code: int, file: str) -> Exception:
    if file and code == -signal.SIGPROF:
        reason = _too_long(read_seconds())
    elif file and code in (-signal.SIGSEGV, -signal.SIGABRT, -signal.SIGFPE, -signal.SIGILL):
        reason = f"the decoder crashed ({signal.Signals(-code).name})"
    else:
        how = f"was killed ({signal.Signals(-code).name})" if code < 0 else f"ended with code {code}"
        return WorkerLost(
            f"a process that reads images (data.workers) {how}{f', at {file}' if file else ''}\n"
            "if it was for lack of memory, lower data.workers or training.batch_size"
        )
    return InputError(f"cannot read the image {file}: {reason}\nreplace the file or leave it out")
