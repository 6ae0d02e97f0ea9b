"""The queries that a report shows, and what they found."""

import numpy as np
import pandas as pd
import pytest

from orthoproxy.evaluation import Retrieval, query_metrics
from orthoproxy.reports.examples import choose_best, choose_random, choose_worst, find_neighbors, rank_queries


@pytest.fixture
def retrieval() -> Retrieval:
    generator = np.random.default_rng(0)
    labels = np.concatenate([generator.integers(12, size=80), [50]])  # the last has no positive
    x = np.eye(12)[labels % 12] + 0.6 * generator.standard_normal((81, 12))
    return Retrieval(x, labels, np.arange(81), np.arange(81))


@pytest.fixture
def table(retrieval: Retrieval) -> pd.DataFrame:
    return pd.DataFrame({"label": [str(label) for label in retrieval.labels]})


def test_ranks_agree_with_the_evaluation(retrieval: Retrieval) -> None:
    found = rank_queries(retrieval)
    mrr = query_metrics(retrieval)["mrr"]
    np.testing.assert_allclose(1 / found.rank[:80], mrr[:80])
    assert found.rank[80] == 0 and np.isnan(mrr[80])
    assert ((found.margin > 0) == (found.rank == 1)).all()


def test_a_sample_of_queries_where_there_are_many(retrieval: Retrieval) -> None:
    every, some = rank_queries(retrieval), rank_queries(retrieval, max_queries=20)
    assert len(some.rows) == len(set(some.rows)) == 20
    np.testing.assert_array_equal(some.rank, every.rank[some.rows])


def test_worst_and_best_are_extreme_and_of_different_classes(retrieval: Retrieval, table: pd.DataFrame) -> None:
    found = rank_queries(retrieval)
    worst, best = choose_worst(found, table, 4), choose_best(found, table, 4)
    assert found.rank[worst[0]] == found.rank.max() and (np.diff(found.rank[worst]) <= 0).all()
    assert found.margin[best[0]] == found.margin.max() and (np.diff(found.margin[best]) <= 0).all()
    for chosen in (worst, best, choose_random(found, table, 4)):
        assert len(set(retrieval.labels[chosen])) == len(chosen) == 4
    assert 80 not in choose_random(found, table, 100)


def test_neighbors_are_marked_and_never_the_query(retrieval: Retrieval) -> None:
    for example in find_neighbors(retrieval, [3, 80], k=10):
        assert example.row not in [found.row for found in example.neighbors]
        x = retrieval.embeddings / np.linalg.norm(retrieval.embeddings, axis=1, keepdims=True)
        assert (np.diff(x[[found.row for found in example.neighbors]] @ x[example.row]) <= 1e-9).all()
        right = [found.correct for found in example.neighbors]
        assert right == [retrieval.labels[found.row] == retrieval.labels[example.row] for found in example.neighbors]
        if any(right):
            assert example.rank == right.index(True) + 1


def test_a_short_gallery_gives_short_lists(table: pd.DataFrame) -> None:
    asked = Retrieval(np.eye(3), np.array([0, 0, 1]), np.arange(3), np.array([1]), groups=np.array([5, 1, 1]))
    assert [len(example.neighbors) for example in find_neighbors(asked, [0, 2], k=6)] == [1, 0]
    assert choose_worst(rank_queries(asked), table, 3) == []  # nothing is wrong
    empty = Retrieval(np.eye(3), np.array([0, 0, 1]), np.arange(3), np.arange(0))
    assert (rank_queries(empty).rank == 0).all() and find_neighbors(empty, []) == []
