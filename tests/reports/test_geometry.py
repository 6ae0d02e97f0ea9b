"""The geometry of proxies against its definitions, written out."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orthoproxy.reports import closest_pairs, effective_rank, orthogonality_distance, spectrum, structured_order
from orthoproxy.reports.geometry import pair_cosines, row_cosines, unit_rows, welch_floor


@st.composite
def proxies(draw: st.DrawFn) -> np.ndarray:
    count, dim, seed = draw(st.integers(1, 30)), draw(st.integers(1, 12)), draw(st.integers(0, 2**16))
    return np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)


def gram(p: np.ndarray) -> np.ndarray:
    unit = p.astype(np.float64) / np.linalg.norm(p.astype(np.float64), axis=1, keepdims=True)
    return unit @ unit.T


@given(proxies())
def test_effective_rank_is_the_entropy_of_the_gram_matrix(p: np.ndarray) -> None:
    share = np.linalg.eigvalsh(gram(p)).clip(1e-300) / len(p)
    assert effective_rank(p) == pytest.approx(np.exp(-(share * np.log(share)).sum()), rel=1e-6)
    assert 1 - 1e-9 <= effective_rank(p) <= min(p.shape) + 1e-9


@given(proxies(), st.floats(0.01, 100))
def test_length_and_rotation_of_the_proxies_do_not_matter(p: np.ndarray, scale: float) -> None:
    rotation, _ = np.linalg.qr(np.random.default_rng(1).standard_normal((p.shape[1], p.shape[1])))
    moved = scale * p.astype(np.float64) @ rotation
    assert effective_rank(moved) == pytest.approx(effective_rank(p), rel=1e-5)
    assert orthogonality_distance(moved) == pytest.approx(orthogonality_distance(p), rel=1e-5, abs=1e-6)


@given(proxies())
def test_spectrum_squares_sum_to_the_number_of_proxies(p: np.ndarray) -> None:
    assert (spectrum(p) ** 2).sum() == pytest.approx(len(p))
    assert len(spectrum(p)) == min(p.shape)
    assert (np.diff(spectrum(p)) <= 1e-12).all()


@given(proxies())
def test_distance_is_as_defined_and_never_below_the_floor(p: np.ndarray) -> None:
    assert orthogonality_distance(p) == pytest.approx(((gram(p) - np.eye(len(p))) ** 2).sum(), abs=1e-6)
    assert orthogonality_distance(p) >= welch_floor(*p.shape) - 1e-6


@pytest.mark.parametrize(("count", "dim"), [(3, 2), (7, 2), (12, 2)])
def test_evenly_spread_directions_reach_the_welch_floor(count: int, dim: int) -> None:
    angle = 2 * np.pi * np.arange(count) / count
    spread = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    assert orthogonality_distance(spread) == pytest.approx(welch_floor(count, dim))
    assert effective_rank(spread) == pytest.approx(dim)


@given(proxies(), st.integers(1, 12))
def test_closest_pairs_are_the_largest_cosines_above_the_diagonal(p: np.ndarray, k: int) -> None:
    rows, columns = np.triu_indices(len(p), 1)
    cosines = gram(p)[rows, columns]
    pairs = closest_pairs(p, [str(number) for number in range(len(p))], k)
    assert [pair.cosine for pair in pairs] == pytest.approx(sorted(cosines, reverse=True)[:k])
    for pair in pairs:
        assert int(pair.first) < int(pair.second)
        assert gram(p)[int(pair.first), int(pair.second)] == pytest.approx(pair.cosine)


def test_closest_pairs_and_pair_cosines_over_several_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    p = np.random.default_rng(0).standard_normal((50, 4))
    names = [str(number) for number in range(50)]
    whole = closest_pairs(p, names, 10), np.sort(pair_cosines(p))
    monkeypatch.setattr("orthoproxy.reports.geometry.ROWS_AT_ONCE", 7)
    assert closest_pairs(p, names, 10) == whole[0]
    assert np.sort(pair_cosines(p)) == pytest.approx(whole[1])


def test_many_pairs_are_sampled_evenly_and_the_same_each_time() -> None:
    p = np.random.default_rng(0).standard_normal((400, 5))
    drawn, every = pair_cosines(p, most=20_000), pair_cosines(p)
    assert len(drawn) == 20_000 < len(every) == 400 * 399 / 2
    assert drawn.mean() == pytest.approx(every.mean(), abs=0.02)
    assert drawn.std() == pytest.approx(every.std(), abs=0.02)
    assert drawn.max() < 1 - 1e-9  # no proxy with itself
    np.testing.assert_array_equal(drawn, pair_cosines(p, most=20_000))


def test_groups_of_alike_proxies_stand_together() -> None:
    generator = np.random.default_rng(0)
    group = generator.permutation(np.repeat(np.arange(4), 6))
    p = np.eye(4)[group] + 0.05 * generator.standard_normal((24, 4))
    changes = np.diff(group[structured_order(p)]) != 0
    assert changes.sum() == 3
    assert sorted(structured_order(p)) == list(range(24))


def test_zero_and_single_proxies() -> None:
    zeros = np.zeros((3, 2))
    assert (unit_rows(zeros) == 0).all()
    assert effective_rank(zeros) == 0
    assert closest_pairs(np.ones((1, 4)), ["only"]) == []
    assert len(pair_cosines(np.ones((1, 4)))) == 0
    assert orthogonality_distance(np.ones((1, 4))) == 0


def test_row_cosines_over_blocks() -> None:
    generator = np.random.default_rng(0)
    x = generator.standard_normal((60, 3))
    first, second = generator.integers(60, size=20_000), generator.integers(60, size=20_000)
    assert row_cosines(x, first, x, second) == pytest.approx(gram(x)[first, second])
