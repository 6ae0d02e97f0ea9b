"""Exact comparison: blocks, self-matches, groups, duplicates, and the lists shown to people."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from brute_force import neighbours_of, retrievals
from hypothesis import given, settings
from hypothesis import strategies as st

from orthoproxy.evaluation import Retrieval, comparisons, nearest, query_metrics

ONE_QUERY_A_BLOCK = 1e-9


@settings(max_examples=100)
@given(retrievals(), st.integers(1, 50), st.sampled_from([ONE_QUERY_A_BLOCK, 0.005, 512]))
def test_nearest_lists_the_most_similar_first_and_ties_by_row(retrieval: Retrieval, k: int, memory_mb: float) -> None:
    rows, similarity = nearest(retrieval, k, memory_mb)
    width = min(k, len(retrieval.gallery))
    assert rows.shape == similarity.shape == (len(retrieval.queries), width)
    for place, query in enumerate(retrieval.queries):
        expected = neighbours_of(retrieval, query)[:width]
        missing = width - len(expected)
        assert rows[place].tolist() == [row for row, _ in expected] + [-1] * missing
        assert similarity[place] == pytest.approx([value for _, value in expected] + [-np.inf] * missing)


@pytest.mark.parametrize("memory_mb", [ONE_QUERY_A_BLOCK, 0.05, 512])
@pytest.mark.parametrize("dim", [3, 7, 384])
def test_exact_duplicates_get_bit_equal_similarities(dim: int, memory_mb: float) -> None:
    generator = np.random.default_rng(dim)
    distinct = generator.standard_normal((37, dim)).astype(np.float32)
    copy_of = np.concatenate([np.arange(37), generator.integers(37, size=80)])
    everyone = np.arange(len(copy_of))
    retrieval = Retrieval(distinct[copy_of], np.zeros(len(everyone), dtype=int), everyone, generator.permutation(117))
    for block in comparisons(retrieval, memory_mb):
        _, first, inverse = np.unique(copy_of[retrieval.gallery], return_index=True, return_inverse=True)
        assert torch.equal(block.similarity, block.similarity[:, first][:, inverse])


def test_negative_and_positive_zero_are_one_number() -> None:
    points = np.array([[1.0, 2.0, 0.0], [3.0, 1.0, 0.0], [3.0, 1.0, -0.0]])
    block = next(comparisons(Retrieval(points, np.zeros(3, dtype=int), np.array([0]), np.arange(3))))
    assert block.similarity[0, 1] == block.similarity[0, 2]


@pytest.mark.parametrize("scale", [2.0**-10, 4.0])
def test_length_does_not_count_also_for_ties(scale: float) -> None:
    """A power of two leaves every digit of the direction: such copies are as similar to the last bit."""
    generator = np.random.default_rng(0)
    x = generator.standard_normal((64, 333))
    points = np.concatenate([x, scale * x])
    everyone = np.arange(128)
    for memory_mb in (ONE_QUERY_A_BLOCK, 512):
        for block in comparisons(Retrieval(points, np.zeros(128, dtype=int), everyone, everyone), memory_mb):
            assert torch.equal(block.similarity[:, :64], block.similarity[:, 64:])


@settings(max_examples=20)
@given(retrievals())
def test_memory_bounds_the_blocks_and_changes_no_result(retrieval: Retrieval) -> None:
    whole = query_metrics(retrieval, memory_mb=512)
    assert [len(block.rows) for block in comparisons(retrieval, 512)] == [len(retrieval.queries)]
    assert [len(b.rows) for b in comparisons(retrieval, ONE_QUERY_A_BLOCK)] == [1] * len(retrieval.queries)
    for memory_mb in (ONE_QUERY_A_BLOCK, 0.01):
        for name, values in query_metrics(retrieval, memory_mb=memory_mb).items():
            np.testing.assert_array_equal(values, whole[name])


def test_a_query_is_removed_by_its_row_not_by_its_place_in_the_list() -> None:
    points = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])  # rows 0 and 1 are the same picture
    rows, _ = nearest(Retrieval(points, np.array([0, 1, 0]), np.arange(3), np.array([2, 1, 0])), k=2)
    assert rows.tolist() == [[1, 2], [0, 2], [0, 1]]


def test_positive_and_negative_part_the_allowed_gallery() -> None:
    points, labels = np.eye(6), np.array([0, 0, 0, 1, 1, 2])
    groups = np.array([4, 4, -1, 4, -1, -1])
    blocks = list(comparisons(Retrieval(points, labels, np.array([0, 2]), np.arange(6), groups)))
    positive = torch.cat([block.positive for block in blocks]).int().tolist()
    negative = torch.cat([block.negative for block in blocks]).int().tolist()
    assert positive == [[0, 0, 1, 0, 0, 0], [1, 1, 0, 0, 0, 0]]
    assert negative == [[0, 0, 0, 0, 1, 1], [0, 0, 0, 1, 1, 1]]  # row 3 shares row 0's group; -1 is no group


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_embeddings_that_are_not_finite_are_refused_by_row(bad: float) -> None:
    points = np.ones((4, 2))
    points[2, 1] = bad
    with pytest.raises(ValueError, match="row 2 is not finite"):
        Retrieval(points, np.zeros(4, dtype=int), np.arange(4), np.arange(4))


@pytest.mark.parametrize("length", [1e-30, 1e-13, 1e30])
def test_any_length_is_compared_by_direction(length: float) -> None:
    points = np.array([[1.0, 0.1], [1.0, 0.0], [0.0, 1.0]]) * length
    block = next(comparisons(Retrieval(points, np.zeros(3, dtype=int), np.array([0]), np.arange(3))))
    assert block.similarity[0].tolist() == pytest.approx([1.0, 1 / 1.01**0.5, 0.1 / 1.01**0.5])


def test_without_queries_there_is_nothing_to_list() -> None:
    nobody = Retrieval(np.eye(3), np.arange(3), np.arange(0), np.arange(3))
    rows, similarity = nearest(nobody, k=2)
    assert rows.shape == similarity.shape == (0, 2)
