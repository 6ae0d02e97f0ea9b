"""Searches that wait at the same time are done in one go, which takes hardly longer than one of them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np
from jaxtyping import Float

from orthoproxy.server.limits import Refused

T = TypeVar("T")
Find = Callable[[Float[np.ndarray, "Q D"], int, str | None, bool], Sequence[Sequence[T]]]
MOST = 64  # queries at once


@dataclass(eq=False)
class _Question(Generic[T]):
    query: Float[np.ndarray, " D"]
    k: int
    how: tuple[str | None, bool]
    called: threading.Event = field(default_factory=threading.Event)  # answered, or to answer its batch
    batch: list[_Question[T]] | None = None
    answer: Sequence[T] | None = None
    error: Exception | None = None


class Batches(Generic[T]):
    """Answers each query by itself, and those that come meanwhile together.

    Queries are taken in the order in which they came; one with another condition waits for the next batch. Whoever asks
    does the work of a batch, then hands over to the one who has waited longest.

    Parameters
    ----------
    find
        From queries, k, a condition and whether one result a group is wanted, to what each query finds, best first.
    at_once
        Batches at work at the same time.
    waiting
        Queries that may wait.
    seconds
        How long each may.

    Examples
    --------
    >>> batches = Batches(lambda queries, k, condition, diverse: [range(k) for _ in queries], 1, waiting=8, seconds=1.0)
    >>> batches.search(np.zeros(2), 3)
    range(0, 3)
    """

    def __init__(self, find: Find[T], at_once: int, waiting: int, seconds: float) -> None:
        self.find, self.waiting, self.seconds = find, waiting, seconds
        self._lock = threading.Lock()
        self._free = at_once
        self._queue: list[_Question[T]] = []  # empty while there is a batch free

    def search(
        self, query: Float[np.ndarray, " D"], k: int, condition: str | None = None, diverse: bool = False
    ) -> Sequence[T]:
        """Search by one query.

        Parameters
        ----------
        query, k, condition, diverse
            As `find` takes them.

        Returns
        -------
        Sequence
            At most k.

        Raises
        ------
        Refused
            503 if too many wait already, or it took too long.
        """
        mine = _Question[T](query, k, (condition, diverse))
        self._line_up(mine)
        if mine.batch is not None:
            self._answer(mine.batch)
        if mine.error is not None:
            raise mine.error
        assert mine.answer is not None
        return mine.answer

    def _line_up(self, mine: _Question[T]) -> None:
        """Wait until there is an answer, or a batch to answer."""
        too_much = Refused(503, "too much to do at the moment; try again in a second")
        with self._lock:
            if self._free:
                self._free -= 1
                mine.batch = [mine]
                return
            if len(self._queue) >= self.waiting:
                raise too_much
            self._queue.append(mine)
        if mine.called.wait(self.seconds):
            return
        with self._lock:
            if mine in self._queue:
                self._queue.remove(mine)
                raise too_much
        if not mine.called.wait(self.seconds):  # it is being answered
            raise too_much

    def _answer(self, batch: list[_Question[T]]) -> None:
        try:
            queries = np.stack([question.query for question in batch])
            found = self.find(queries, max(question.k for question in batch), *batch[0].how)
            for question, results in zip(batch, found, strict=True):
                question.answer = results[: question.k]
        except Exception as error:
            for question in batch:
                question.error = error
        finally:
            self._hand_over()
            for question in batch:
                question.called.set()

    def _hand_over(self) -> None:
        with self._lock:
            if not self._queue:
                self._free += 1
                return
            first = self._queue[0]
            first.batch = [question for question in self._queue if question.how == first.how][:MOST]
            taken = set(map(id, first.batch))
            self._queue = [question for question in self._queue if id(question) not in taken]
        first.called.set()
