"""The queries that a report shows, and what they found."""

import numpy as np
import pytest

from orthoproxy.evaluation import Retrieval, query_metrics
from orthoproxy.reports.examples import choose_rows, find_neighbors, rank_queries


@pytest.fixture
def retrieval() -> Retrieval:
    generator = np.random.default_rng(0)
    labels = np.concatenate([generator.integers(12, size=80), [50]])  # the last has no positive
    x = np.eye(12)[labels % 12] + 0.6 * generator.standard_normal((81, 12))
    return Retrieval(x, labels, np.arange(81), np.arange(81))


def test_ranks_agree_with_the_evaluation(retrieval: Retrieval) -> None:
    found = rank_queries(retrieval)
    mrr = query_metrics(retrieval)["mrr"]
    np.testing.assert_allclose(1 / found["rank"][:80], mrr[:80])
    assert found["rank"][80] == 0 and np.isnan(mrr[80])
    assert ((found["margin"] > 0) == (found["rank"] == 1)).all()
    some = rank_queries(retrieval, max_queries=20)  # a sample
    assert len(some) == some.index.nunique() == 20
    assert (some["rank"] == found["rank"][some.index]).all()


def test_worst_and_best_are_extreme_and_of_different_classes(retrieval: Retrieval) -> None:
    found = rank_queries(retrieval)
    chosen = choose_rows(found, 4)
    ranks, margins = found["rank"][chosen["worst"]], found["margin"][chosen["best"]]
    assert ranks.iloc[0] == found["rank"].max() and ranks.is_monotonic_decreasing
    assert margins.iloc[0] == found["margin"].max() and margins.is_monotonic_decreasing
    for rows in chosen.values():
        assert len(set(retrieval.labels[rows])) == len(rows) == 4
    assert 80 not in choose_rows(found, 100)["random"]


def test_neighbors_are_marked_and_never_the_query(retrieval: Retrieval) -> None:
    for example in find_neighbors(retrieval, [3, 80], k=10):
        rows, right = map(list, zip(*example.neighbors, strict=True))
        assert example.row not in rows
        x = retrieval.embeddings / np.linalg.norm(retrieval.embeddings, axis=1, keepdims=True)
        assert (np.diff(x[rows] @ x[example.row]) <= 1e-9).all()
        assert right == (retrieval.labels[rows] == retrieval.labels[example.row]).tolist()


def test_a_short_gallery_gives_short_lists() -> None:
    asked = Retrieval(np.eye(3), np.array([0, 0, 1]), np.arange(3), np.array([1]), groups=np.array([5, 1, 1]))
    assert [len(example.neighbors) for example in find_neighbors(asked, [0, 2], k=6)] == [1, 0]
    assert choose_rows(rank_queries(asked), 3)["worst"] == []  # nothing is wrong
    empty = Retrieval(np.eye(3), np.array([0, 0, 1]), np.arange(3), np.arange(0))
    assert (rank_queries(empty)["rank"] == 0).all() and find_neighbors(empty, []) == []
