"""The geometry of proxies against its definitions, written out."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from recorded import Recorded

from orthoproxy.evaluation.retrieval import unit_rows
from orthoproxy.reports.geometry import (
    compare_proxies,
    effective_rank,
    nearest_rows,
    orthogonality_distance,
    pair_cosines,
    welch_floor,
)


@st.composite
def proxies(draw: st.DrawFn) -> np.ndarray:
    count, dim, seed = draw(st.integers(1, 30)), draw(st.integers(1, 12)), draw(st.integers(0, 2**16))
    return np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)


def gram(p: np.ndarray) -> np.ndarray:
    unit = p.astype(np.float64) / np.linalg.norm(p.astype(np.float64), axis=1, keepdims=True)
    return unit @ unit.T


def numbered(count: int) -> list[str]:
    return [str(number) for number in range(count)]


@given(proxies())
def test_effective_rank_is_the_entropy_of_the_gram_matrix(p: np.ndarray) -> None:
    share = np.linalg.eigvalsh(gram(p)).clip(1e-300) / len(p)
    assert effective_rank(p) == pytest.approx(np.exp(-(share * np.log(share)).sum()), rel=1e-6)
    assert 1 - 1e-9 <= effective_rank(p) <= min(p.shape) + 1e-9


@given(proxies())
def test_distance_is_as_defined_and_never_below_the_welch_bound(p: np.ndarray) -> None:
    assert orthogonality_distance(p) == pytest.approx(((gram(p) - np.eye(len(p))) ** 2).sum(), abs=1e-6)
    assert orthogonality_distance(p) >= welch_floor(*p.shape) - 1e-6


@pytest.mark.parametrize("count", [3, 7, 12])
def test_evenly_spread_directions_reach_the_welch_bound(count: int) -> None:
    angle = 2 * np.pi * np.arange(count) / count
    spread = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    assert orthogonality_distance(spread) == pytest.approx(welch_floor(count, 2))
    assert effective_rank(spread) == pytest.approx(2)


@given(proxies(), st.integers(1, 12), st.sampled_from([1e-5, 1e-4, 64]))
def test_closest_pairs_are_the_largest_cosines_whatever_the_block(p: np.ndarray, k: int, block_mb: float) -> None:
    rows, columns = np.triu_indices(len(p), 1)
    cosines = gram(p)[rows, columns]
    pairs, nearest = compare_proxies(p, numbered(len(p)), k, block_mb=block_mb)
    assert [pair.cosine for pair in pairs] == pytest.approx(sorted(cosines, reverse=True)[:k])
    for pair in pairs:
        assert int(pair.first) < int(pair.second)
        assert gram(p)[int(pair.first), int(pair.second)] == pytest.approx(pair.cosine)
    if len(p) > 1:
        assert nearest == pytest.approx((gram(p) - 2 * np.eye(len(p))).max(axis=1), abs=1e-5)


def test_with_too_many_classes_a_sample_of_proxies_is_compared_with_all() -> None:
    p = np.random.default_rng(0).standard_normal((400, 8))
    p[123] = p[321]
    pairs, nearest = compare_proxies(p, numbered(400), k=3, max_cosines=400 * 50)
    assert len(nearest) == 50
    largest = (gram(p) - 2 * np.eye(400)).max(axis=1)
    assert all(np.isclose(largest, value, atol=1e-5).any() for value in nearest)
    assert pairs[0].cosine == pytest.approx(nearest.max(), abs=1e-5)
    assert compare_proxies(p, numbered(400), k=1)[0][0][:2] == ("123", "321")


def test_memory_and_work_are_bounded(unchecked: None) -> None:
    for count in (2000, 4000):
        p = np.random.default_rng(0).standard_normal((count, 16)).astype(np.float32)
        with Recorded() as used:
            compare_proxies(p, numbered(count), block_mb=1)
            nearest_rows(p[:1000], p, block_mb=1)
        assert used.largest <= max(2**20, 8 * 16 * (count + 1000))  # a block or a copy; all cosines: 15 and 61 MiB
        assert sum(map(math.prod, used.products)) == count**2 + 1000 * count
        with Recorded() as used:
            compare_proxies(p, numbered(count), max_cosines=500_000)
        assert sum(map(math.prod, used.products)) <= 500_000


@given(proxies(), proxies())
def test_the_nearest_row_has_the_largest_cosine(p: np.ndarray, q: np.ndarray) -> None:
    dim = min(p.shape[1], q.shape[1])
    p, q = p[:, :dim], q[:, :dim]
    cosines = unit_rows(p) @ unit_rows(q).T
    assert cosines[np.arange(len(p)), nearest_rows(p, q, block_mb=1e-4)] == pytest.approx(cosines.max(axis=1), abs=1e-6)


def test_many_pairs_are_sampled_evenly_and_the_same_each_time() -> None:
    p = np.random.default_rng(0).standard_normal((400, 5))
    drawn, every = pair_cosines(p, max_proxies=200), pair_cosines(p)
    assert len(drawn) == 200 * 199 / 2 < len(every) == 400 * 399 / 2
    assert [drawn.mean(), drawn.std()] == pytest.approx([every.mean(), every.std()], abs=0.02)
    assert drawn.max() < 1 - 1e-9  # no proxy with itself
    np.testing.assert_array_equal(drawn, pair_cosines(p, max_proxies=200))
