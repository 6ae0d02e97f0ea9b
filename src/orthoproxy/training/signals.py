"""How training stops when it is asked to: by Ctrl-C, or by SIGTERM."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from orthoproxy.core.distributed import is_main


class Interrupted(Exception):  # noqa: N818 -- a wish of the user, no error
    """Ctrl-C came, or SIGTERM: the step was finished and the run saved; it can be resumed.

    Parameters
    ----------
    message
        Where it stopped.
    number
        Of the signal.

    Examples
    --------
    >>> Interrupted("stopped after step 3; the run is saved", signal.SIGTERM).code
    143
    """

    def __init__(self, message: str, number: int = signal.SIGINT) -> None:
        super().__init__(message)
        self.code = 128 + number  # what a shell reports of a process that the signal ended


class StopNow(BaseException):  # no Exception, which what is interrupted may catch
    """A signal came where the work can be left as it is."""


class Stop:
    """Whether a signal has asked to stop, and which.

    Examples
    --------
    >>> with stop_on_signal() as stop:
    ...     stop.asked
    False
    """

    def __init__(self) -> None:
        self.number = int(signal.SIGINT)  # also where it was another process that was asked
        self.asked = self.interrupts = False
        self.process = os.getpid()

    def note(self, number: int, frame: FrameType | None) -> None:
        """Handle the signal; a second Ctrl-C stops at once, while clusters may repeat SIGTERM.

        Parameters
        ----------
        number, frame
            As Python gives them to a handler.
        """
        if os.getpid() != self.process:  # a worker of the loader, which goes on until the loop stops
            return
        if self.asked:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            return
        self.asked, self.number = True, number
        if is_main():
            again = "; press Ctrl-C again to stop at once" if number == signal.SIGINT else ""
            print(f"stopping after this step{again}", file=sys.stderr, flush=True)
        if self.interrupts:
            raise StopNow

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Let a signal end the block.

        Raises
        ------
        StopNow
            When it comes, or if it has come already.
        """
        self.interrupts = True
        try:
            if self.asked:
                raise StopNow
            yield
        finally:
            self.interrupts = False


@contextmanager
def stop_on_signal() -> Iterator[Stop]:
    """Note the first Ctrl-C or SIGTERM in the block; clusters send the latter some time before they kill.

    Examples
    --------
    See `Stop`.
    """
    stop = Stop()
    in_main_thread = threading.current_thread() is threading.main_thread()
    numbers = (signal.SIGINT, signal.SIGTERM) if in_main_thread else ()
    before = [signal.signal(number, stop.note) for number in numbers]
    try:
        yield stop
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
