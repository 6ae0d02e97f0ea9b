"""Stop training on Ctrl-C or SIGTERM, with the run saved."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from orthoproxy.core.distributed import is_main


class Interrupted(Exception):  # noqa: N818 -- not an error
    """Training was stopped by a signal after `step`; the run is saved and can be resumed."""

    def __init__(self, step: int, number: int = signal.SIGINT) -> None:
        super().__init__(f"stopped after step {step}; the run is saved")
        self.code = 128 + number  # as shells report it


class StopNow(BaseException):  # not an Exception: library code must not catch it
    """A signal arrived inside `Stop.immediately`."""


class Stop:
    """Whether a signal has asked to stop, and which one."""

    def __init__(self) -> None:
        self.signal = int(signal.SIGINT)  # also where another process got the signal
        self.requested = self.raises = False
        self.process = os.getpid()

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Signal handler. A second Ctrl-C stops at once; clusters may repeat SIGTERM."""
        if os.getpid() != self.process:  # a forked data loading worker
            return
        if self.requested:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            return
        self.requested, self.signal = True, number
        if is_main():
            again = "; press Ctrl-C again to stop at once" if number == signal.SIGINT else ""
            print(f"stopping after this step{again}", file=sys.stderr, flush=True)
        if self.raises:
            raise StopNow

    @contextmanager
    def immediately(self) -> Iterator[None]:
        """Raise `StopNow` in the block when a signal arrives, or if one has arrived already."""
        self.raises = True
        try:
            if self.requested:
                raise StopNow
            yield
        finally:
            self.raises = False


@contextmanager
def stop_on_signal() -> Iterator[Stop]:
    """Note the first Ctrl-C or SIGTERM instead of dying from it; clusters send the latter before they kill."""
    stop = Stop()
    in_main_thread = threading.current_thread() is threading.main_thread()
    numbers = (signal.SIGINT, signal.SIGTERM) if in_main_thread else ()
    before = [signal.signal(number, stop.handle) for number in numbers]
    try:
        yield stop
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
