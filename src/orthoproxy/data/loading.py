"""Batches from worker processes: unreadable images, stuck reads and dead workers become errors that name the file."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import torch
from torch.utils.data import default_collate

from orthoproxy.core.errors import InputError, WorkerLost
from orthoproxy.data import current_file
from orthoproxy.data.current_file import LONGEST_PATH, REPLACE_FILE

T = TypeVar("T")

TIMEOUT_VARIABLE = "ORTHOPROXY_READ_SECONDS"
DEFAULT_TIMEOUT = 120.0  # seconds
CRASH_SIGNALS = (signal.SIGSEGV, signal.SIGABRT, signal.SIGFPE, signal.SIGILL)
SHARED_MEMORY = "shared memory (/dev/shm) is full. Hint: in Docker, give the container more (--shm-size=2g); "
SHARED_MEMORY += "or read the images in the main process (0 workers)"


def loader_options(
    workers: int,
    collate_fn: Callable[[list[Any]], Any] = default_collate,
    persistent_workers: bool = False,
) -> dict[str, Any]:
    """Return keyword arguments of a DataLoader for `iterate_batches`."""
    # a dataset returns an InputError instead of raising it: from a worker, it would reach the main process as text only
    options: dict[str, Any] = {"num_workers": workers, "collate_fn": partial(_collate_or_error, collate_fn)}
    if workers and getattr(multiprocessing.current_process(), "_inheriting", False):
        sys.exit(1)  # the script has no main guard, so this worker runs it again; `_find_cause` explains it
    if workers:
        options |= {"timeout": read_timeout(), "worker_init_fn": _CurrentFiles(workers)}
    return {**options, "persistent_workers": persistent_workers and workers > 0}


def iterate_batches(loader: Iterable[T]) -> Iterator[T]:
    """Yield batches of a loader; InputError for an unreadable image or a stuck read, WorkerLost for a killed worker."""
    batches, started = None, time.monotonic()
    try:
        with _unchanged_sigchld_handler():
            batches = iter(loader)
        while True:
            started = time.monotonic()
            batch = next(batches)
            if isinstance(batch, InputError):
                raise batch
            yield batch
    except StopIteration:
        return
    except (RuntimeError, OSError, EOFError) as error:
        found = _find_cause(loader, batches, time.monotonic() - started, error)
        if found is None:
            raise
        raise found from error


def read_timeout() -> float:
    """Return the seconds after which a batch that does not arrive is an error; 0 for no limit."""
    given = os.environ.get(TIMEOUT_VARIABLE) or str(DEFAULT_TIMEOUT)
    try:
        seconds = float(given)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < 1e8:
        raise InputError(repr(given), field=TIMEOUT_VARIABLE, expected="a number of seconds, or 0 for no limit")
    return seconds


class _CurrentFiles:
    """The file that each worker is reading; a `worker_init_fn`, so that workers know where to write it."""

    def __init__(self, workers: int) -> None:
        try:
            self.shared = torch.zeros(workers, LONGEST_PATH, dtype=torch.uint8).share_memory_()
        except RuntimeError as error:
            raise WorkerLost(SHARED_MEMORY) from error

    def __call__(self, worker: int) -> None:
        current_file.write_to(self.shared[worker].numpy())

    def __getitem__(self, worker: int) -> str:
        return os.fsdecode(self.shared[worker].numpy().tobytes().partition(b"\0")[0])


def _collate_or_error(collate_fn: Callable[[list[Any]], T], items: list[Any]) -> T | InputError:
    return next((item for item in items if isinstance(item, InputError)), None) or collate_fn(items)


@contextmanager
def _unchanged_sigchld_handler() -> Iterator[None]:
    """Undo PyTorch's handler, which raises when a worker dies, be it in the middle of an optimizer step."""
    if not hasattr(signal, "SIGCHLD") or threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, handler or signal.SIG_DFL)


def _find_cause(loader: Any, batches: Any, waited: float, error: Exception) -> InputError | WorkerLost | None:
    """Return the error for a dead or stuck worker of a `DataLoader`; None if there is none."""
    workers = getattr(batches or getattr(loader, "_iterator", None), "_workers", [])
    for worker in workers:
        worker.join(0.2)  # its death may have been noticed before its exit code is known
    files = getattr(loader, "worker_init_fn", None)
    names = [files[number] if isinstance(files, _CurrentFiles) else "" for number in range(len(workers))]
    for worker, file in zip(workers, names, strict=True):
        code = worker.exitcode or 0
        name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        if name == "SIGBUS":
            return WorkerLost(SHARED_MEMORY)
        if file and -code in CRASH_SIGNALS:
            return InputError(f"the image decoder crashed ({name})", path=file, hint=REPLACE_FILE)
        if code == 1 and not file and multiprocessing.get_start_method() != "fork":
            guard = 'put the code of a script under if __name__ == "__main__":, or use no workers'
            return WorkerLost(f"a data loading worker could not start. Hint: {guard}")
        if code:
            return WorkerLost(
                f"a data loading worker was killed ({name}){f' while it read {file}' if file else ''}. "
                "Hint: if the machine ran out of memory, use fewer workers, or start again with a smaller batch size"
            )
    no_space = "shared memory" in str(error) or getattr(error, "errno", None) == errno.ENOSPC
    if getattr(loader, "num_workers", 0) and no_space:  # of batches, or of the semaphores of queues
        return WorkerLost(SHARED_MEMORY)
    if workers and 0 < read_timeout() <= waited:
        problem = f"no batch was read within {read_timeout():g} seconds"
        hint = f"{REPLACE_FILE}, or set {TIMEOUT_VARIABLE} to more seconds"
        return InputError(problem, path=next(filter(None, names), None), hint=hint)
    return None
