"""Search and ranks against the brute-force reference; duplicates, groups, memory and the number of comparisons."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from brute_force import neighbors, retrievals
from errors import error_of
from hypothesis import given, settings
from hypothesis import strategies as st
from recorded import Recorded
from torch.utils.flop_counter import FlopCounterMode

from orthoproxy.data import make_table
from orthoproxy.evaluation import Retrieval, Scoring, calibrate_no_match, nearest_neighbors, query_metrics
from orthoproxy.evaluation.retrieval import rank_positives

ONE_QUERY_PER_BLOCK = 1e-9


def calibrate(retrieval: Retrieval, block_memory_mb: float, groups: int) -> None:
    numbers = np.arange(len(retrieval.labels))
    group = (numbers % groups).astype(str).tolist() if groups else ""
    table = make_table(numbers.astype(str).tolist(), retrieval.labels.astype(str).tolist(), group=group)
    calibrate_no_match(retrieval.embeddings, table, Scoring(block_memory_mb=block_memory_mb))


def one_class_pairs(count: int, images_per_class: int) -> Retrieval:
    generator = np.random.default_rng(0)
    everyone = np.arange(count)
    x = generator.standard_normal((count, 8)).astype(np.float32)
    return Retrieval(x, everyone // images_per_class, everyone, everyone)


@settings(max_examples=100)
@given(retrievals(), st.integers(1, 50), st.sampled_from([ONE_QUERY_PER_BLOCK, 0.005, 512]))
def test_neighbors_are_the_most_similar_first_and_ties_by_row(retrieval: Retrieval, k: int, memory_mb: float) -> None:
    rows, similarity = nearest_neighbors(retrieval, k, memory_mb)
    width = min(k, len(retrieval.gallery))
    assert rows.shape == similarity.shape == (len(retrieval.queries), width)
    for place, query in enumerate(retrieval.queries):
        expected = neighbors(retrieval, query)[:width]
        missing = width - len(expected)
        assert rows[place].tolist() == [row for row, _ in expected] + [-1] * missing
        assert similarity[place] == pytest.approx([value for _, value in expected] + [-np.inf] * missing)


@settings(max_examples=100)
@given(retrievals(), st.sampled_from([ONE_QUERY_PER_BLOCK, 0.005, 512]), st.booleans())
def test_ranks_count_the_negatives_at_least_as_similar(retrieval: Retrieval, memory_mb: float, full: bool) -> None:
    rankings = list(rank_positives(retrieval, memory_mb, full=full))
    assert sum(len(ranking.positives) for ranking in rankings) == len(retrieval.queries)
    queries = iter(retrieval.queries)
    for ranking in rankings:
        for number, count in enumerate(ranking.positives.tolist()):
            query = next(queries)
            similar = dict(neighbors(retrieval, query))
            same = [row for row in similar if retrieval.labels[row] == retrieval.labels[query]]
            positive = sorted((similar[row] for row in same), reverse=True)
            negative = [value for row, value in similar.items() if row not in same]
            expected = [j + sum(n >= p for n in negative) for j, p in enumerate(positive, start=1)]
            assert count == len(positive)
            ranks = ranking.ranks[number, :count].tolist()
            assert ranks[:1] == expected[:1]
            exact_to = len(retrieval.labels) if full else count + 1
            assert [min(rank, exact_to) for rank in ranks[1:]] == [min(rank, exact_to) for rank in expected[1:]]
            assert float(ranking.best_positive[number]) == pytest.approx(max(positive, default=-np.inf))
            assert float(ranking.best_negative[number]) == pytest.approx(max(negative, default=-np.inf))


@pytest.mark.parametrize("memory_mb", [ONE_QUERY_PER_BLOCK, 0.05, 512])
@pytest.mark.parametrize("dim", [3, 7, 384])
def test_exact_duplicates_tie_whatever_their_length(dim: int, memory_mb: float) -> None:
    """A power of two leaves every digit of the direction; -0.0 and 0.0 are one number."""
    generator = np.random.default_rng(dim)
    distinct = generator.standard_normal((37, dim)).astype(np.float32)
    distinct[:, 0] = 0.0
    x = np.concatenate([distinct, distinct, 4 * distinct])
    x[37:, 0] = -0.0
    everyone = np.arange(111)
    _, similarity = nearest_neighbors(Retrieval(x, everyone % 37, everyone, everyone), 110, memory_mb)
    triples = similarity[:, 2:].reshape(111, 36, 3)
    assert (triples.max(axis=2) == triples.min(axis=2)).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_embeddings_must_be_finite(bad: float) -> None:
    points = np.ones((4, 2))
    points[2, 1] = bad
    error = error_of(Retrieval, points, np.zeros(4, dtype=int), np.arange(4), np.arange(4))
    assert error.field == "embeddings" and "row 2" in error.problem


@pytest.mark.parametrize("length", [1e-30, 1e-13, 1e30])
def test_any_length_is_compared_by_direction(length: float) -> None:
    points = np.array([[1.0, 0.1], [1.0, 0.0], [0.0, 1.0]]) * length
    retrieval = Retrieval(points, np.zeros(3, dtype=int), np.array([0]), np.arange(3))
    assert nearest_neighbors(retrieval, 2)[1].tolist() == [pytest.approx([1 / 1.01**0.5, 0.1 / 1.01**0.5])]


@pytest.mark.parametrize("images_per_class", [4, 300, 1200], ids=["small classes", "large classes", "one class"])
@pytest.mark.parametrize("work", [
    query_metrics, partial(query_metrics, average_precision=True), partial(nearest_neighbors, k=9),
    partial(calibrate, groups=0), partial(calibrate, groups=7),
])  # fmt: skip
def test_memory_is_bounded_and_every_pair_is_compared_once(work: Callable[..., Any], images_per_class: int) -> None:
    """All pairs of 1,200 images would take 11 MiB; twice the images take four times the work, whatever the classes."""
    for count in (600, 1200):
        retrieval = one_class_pairs(count, images_per_class)
        with FlopCounterMode(display=False) as counter, Recorded() as used:
            work(retrieval, block_memory_mb=1.0)
        assert counter.get_total_flops() == 2 * count * count * 8
        assert used.largest <= 2**20
