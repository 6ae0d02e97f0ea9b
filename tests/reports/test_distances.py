"""Drawn pairs: the right ones, in the right shares, without all of them in memory."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from orthoproxy.evaluation import Retrieval
from orthoproxy.reports.distances import pair_distances, separation


def retrieval(count: int = 60, groups: bool = False) -> Retrieval:
    generator = np.random.default_rng(0)
    group = generator.integers(-1, 3, size=count) if groups else None
    queries, gallery = np.arange(0, count, 2), np.arange(count // 3, count)
    return Retrieval(generator.standard_normal((count, 4)), generator.integers(6, size=count), queries, gallery, group)


@pytest.mark.parametrize("groups", [False, True])
def test_each_allowed_pair_is_drawn_and_no_other(groups: bool) -> None:
    asked = retrieval(groups=groups)
    x = asked.embeddings / np.linalg.norm(asked.embeddings, axis=1, keepdims=True)
    expected: dict[bool, set[float]] = {True: set(), False: set()}
    for query in asked.queries:
        for other in asked.gallery:
            own = asked.groups is not None and asked.groups[query] >= 0 and asked.groups[query] == asked.groups[other]
            if query != other and not own:
                expected[bool(asked.labels[query] == asked.labels[other])].add(round(1 - x[query] @ x[other], 6))
    positives, negatives = pair_distances(asked, pairs=30_000)
    assert set(positives.round(6)) == expected[True]
    assert set(negatives.round(6)) == expected[False]


def test_the_same_pairs_each_time() -> None:
    for first, second in zip(pair_distances(retrieval()), pair_distances(retrieval()), strict=True):
        np.testing.assert_array_equal(first, second)


def test_a_query_without_positives_and_an_empty_gallery() -> None:
    x = np.eye(3)
    alone = Retrieval(x, np.arange(3), np.arange(3), np.arange(3))
    assert [len(part) > 0 for part in pair_distances(alone)] == [False, True]
    empty = Retrieval(x, np.arange(3), np.arange(3), np.arange(0))
    assert [len(part) for part in pair_distances(empty)] == [0, 0]
    assert np.isnan(separation(*pair_distances(empty)))


def test_memory_stays_small_where_all_pairs_would_not_fit() -> None:
    generator = np.random.default_rng(0)
    x, everyone = generator.standard_normal((20_000, 16)).astype(np.float32), np.arange(20_000)
    asked = Retrieval(x, generator.integers(1000, size=20_000), everyone, everyone)
    tracemalloc.start()
    pair_distances(asked, pairs=50_000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 60e6  # all pairs: 3.2e9


def test_separation_counts_every_pair_of_pairs() -> None:
    generator = np.random.default_rng(0)
    a, b = generator.integers(9, size=50) / 9, generator.integers(3, 12, size=40) / 9
    expected = np.mean([(x < y) + 0.5 * (x == y) for x in a for y in b])
    assert separation(a, b) == pytest.approx(expected)
