"""Queries that wait together are answered together, each with its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from orthoproxy.server.limits import Refused
from orthoproxy.server.query_batching import Batches


class Shop:
    """Answers with the query's own number, k times; notes the batches, and waits for a word before each answer."""

    def __init__(self, quick: bool = False) -> None:
        self.batches: list[tuple[list[int], str | None]] = []
        self.go_on = threading.Semaphore(10**6 if quick else 0)

    def find(self, queries: Any, k: int, condition: str | None, diverse: bool) -> list[list[int]]:
        self.batches.append(([int(query[0]) for query in queries], condition))
        assert self.go_on.acquire(timeout=20)
        if condition == "broken":
            raise ValueError("broken")
        return [[int(query[0])] * k for query in queries]


def asking(
    batches: Batches[int], number: int, answers: dict[int, Any], k: int = 2, condition: str | None = None
) -> Any:
    def ask() -> None:
        try:
            answers[number] = batches.search(np.array([float(number)]), k, condition)
        except (Refused, ValueError) as error:
            answers[number] = error

    thread = threading.Thread(target=ask)
    thread.start()
    return thread


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_those_that_wait_go_together_in_order() -> None:
    shop, answers = Shop(), {}
    batches = Batches(shop.find, 1, waiting=20, seconds=20)
    threads = []
    for number, condition in enumerate([None, None, "red", None, "red", "red", None]):
        threads.append(asking(batches, number, answers, k=number + 1, condition=condition))
        until(lambda number=number: len(shop.batches) + len(batches._queue) == number + 1)
    for _ in range(10):
        shop.go_on.release()
    for thread in threads:
        thread.join(20)
    assert shop.batches == [([0], None), ([1, 3, 6], None), ([2, 4, 5], "red")]
    assert answers == {number: [number] * (number + 1) for number in range(7)}  # each its own, as many as it asked for
    assert batches._free == 1 and not batches._queue


def test_an_error_is_of_its_batch_alone() -> None:
    shop, answers = Shop(), {}
    batches = Batches(shop.find, 1, waiting=20, seconds=20)
    threads = []
    for number, condition in enumerate([None, "broken", "broken", None]):
        threads.append(asking(batches, number, answers, condition=condition))
        until(lambda number=number: len(shop.batches) + len(batches._queue) == number + 1)
    for _ in range(10):
        shop.go_on.release()
    for thread in threads:
        thread.join(20)
    assert answers[0] == [0, 0] and answers[3] == [3, 3]
    assert isinstance(answers[1], ValueError) and isinstance(answers[2], ValueError)
    assert batches._free == 1


def test_one_too_many_is_refused_and_one_that_waits_too_long() -> None:
    shop, answers = Shop(), {}
    batches = Batches(shop.find, 1, waiting=1, seconds=0.1)
    first = asking(batches, 0, answers)
    until(lambda: len(shop.batches) == 1)
    second = asking(batches, 1, answers)
    until(lambda: len(batches._queue) == 1)
    with pytest.raises(Refused) as caught:
        batches.search(np.zeros(1), 1)
    assert caught.value.status == 503
    second.join(20)
    assert isinstance(answers[1], Refused) and answers[1].status == 503
    shop.go_on.release()
    first.join(20)
    assert answers[0] == [0, 0] and not batches._queue and batches._free == 1


def test_many_threads_get_their_own_answers() -> None:
    shop, answers = Shop(quick=True), {}
    batches = Batches(shop.find, 2, waiting=1000, seconds=20)

    def ask(number: int) -> None:
        for turn in range(50):
            mine = 100 * number + turn
            answers[mine] = batches.search(np.array([float(mine)]), 1, "odd" if turn % 2 else None)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert answers == {100 * number + turn: [100 * number + turn] for number in range(16) for turn in range(50)}
    assert batches._free == 2
