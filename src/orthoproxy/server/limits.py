"""How much is accepted and done at once, and the refusal of what is more."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

CLIENTS_KNOWN = 10_000  # addresses whose rates are kept; the least recently seen are forgotten


class Refused(Exception):  # noqa: N818 - a request is, by no fault of ours
    """A request that is not served, with the HTTP status and the reason in a sentence.

    Parameters
    ----------
    status
        For example 413.
    reason
        What the one who asked reads.

    Examples
    --------
    >>> Refused(413, "the picture is too large").status
    413
    """

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(status, reason)
        self.status, self.reason = status, reason


@dataclass(frozen=True)
class Limits:
    """How much is accepted, and how much is done at once.

    Parameters
    ----------
    upload_bytes
        Of a picture's file.
    pixels
        Of a picture, read from its header before it is decoded.
    decode_seconds
        For decoding and resizing one picture; the process that takes longer is ended.
    decoders
        Processes that decode.
    searches
        Searches on a Milvus server at work at once, in a folder one; others wait, and are then done together.
    waiting
        Searches, and pictures to be decoded, that may wait; one more is refused with 503.
    wait_seconds
        How long they may.
    body_seconds
        For a request's body to arrive.
    requests_at_once
        Of all clients, answers in progress included.
    bytes_at_once
        Of the bodies of all these requests together; one more is refused with 503.
    requests_per_second, burst
        Of one client's address, on average and at once. Above that a request waits up to `pace_seconds`; beyond, it is
        refused with 429.
    pace_seconds
        See above.
    failures_per_minute
        Wrong tokens from one address.

    Examples
    --------
    >>> Limits(upload_bytes=1_000_000).pixels
    50000000
    """

    upload_bytes: int = 20_000_000
    pixels: int = 50_000_000
    decode_seconds: float = 10.0
    decoders: int = 2
    searches: int = 4
    waiting: int = 64
    wait_seconds: float = 30.0
    body_seconds: float = 60.0
    requests_at_once: int = 256
    bytes_at_once: int = 400_000_000
    requests_per_second: float = 200.0
    burst: int = 400
    pace_seconds: float = 2.0
    failures_per_minute: int = 10


DEFAULT = Limits()


class Turns:
    """So many at work at once; the others wait in the order in which they came.

    Parameters
    ----------
    at_once
        How many work.
    waiting
        How many may wait.
    seconds
        How long each may.

    Examples
    --------
    >>> turns = Turns(at_once=1, waiting=0, seconds=1.0)
    >>> with turns.turn(), turns.turn():
    ...     pass
    Traceback (most recent call last):
    ...
    orthoproxy.server.limits.Refused: (503, 'too much to do at the moment; try again in a second')
    """

    def __init__(self, at_once: int, waiting: int, seconds: float) -> None:
        self.free, self.waiting, self.seconds = at_once, waiting, seconds
        self._lock = threading.Lock()
        self._queue: deque[threading.Event] = deque()

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Wait for a turn, and have it for the block.

        Raises
        ------
        Refused
            503 if too many wait already, or it took too long.
        """
        self._wait()
        try:
            yield
        finally:
            self._hand_over()

    def _wait(self) -> None:
        with self._lock:
            if self.free:
                self.free -= 1
                return
            if len(self._queue) >= self.waiting:
                raise Refused(503, "too much to do at the moment; try again in a second")
            mine = threading.Event()
            self._queue.append(mine)
        if not mine.wait(self.seconds):
            with self._lock:
                if not mine.is_set():  # else the turn came in this very moment
                    self._queue.remove(mine)
                    raise Refused(503, "too much to do at the moment; try again in a second")

    def _hand_over(self) -> None:
        with self._lock:
            if self._queue:
                self._queue.popleft().set()
            else:
                self.free += 1


class Pace:
    """So many requests a second from each client, with a burst; what comes faster waits, and at last fails.

    Parameters
    ----------
    per_second
        On average.
    burst
        At once, after a pause.
    longest
        Seconds that a request may wait.
    clock
        Seconds that never run back.

    Examples
    --------
    >>> pace = Pace(per_second=2.0, burst=1, longest=0.6, clock=lambda: 100.0)
    >>> [pace.delay("10.0.0.1") for _ in range(3)]
    [0.0, 0.5, None]
    """

    def __init__(
        self, per_second: float, burst: int, longest: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.step, self.burst, self.longest, self.clock = 1 / per_second, burst, longest, clock
        self._due: OrderedDict[str, float] = OrderedDict()  # client -> when all that it asked for has been its share

    def delay(self, client: str, count: bool = True) -> float | None:
        """Count a request in, and return the seconds for which it has to wait; None if it is one too many.

        Parameters
        ----------
        client
            An address.
        count
            False to look only.
        """
        now = self.clock()
        due = max(self._due.pop(client, now), now)
        wait = due + self.step - (now + self.burst * self.step)
        refused = wait > self.longest
        self._due[client] = due if refused or not count else due + self.step
        if len(self._due) > CLIENTS_KNOWN:
            self._due.popitem(last=False)
        return None if refused else max(wait, 0.0)
