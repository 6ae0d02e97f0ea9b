"""Intervals, p and Holm against SciPy, exact enumeration and simulation."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from orthoproxy.studies.statistics import compare, crossed_bootstrap, holm, mean_score, seed_scores, sign_flip_p

SEED = st.integers(0, 2**32 - 1)


def drawn(seed: int, seeds: int = 4, classes: int = 9) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    return generator.random((seeds, classes)), generator.integers(1, 20, size=classes)


def test_bootstrap_draws_are_means_of_drawn_seeds_and_classes() -> None:
    """Two seeds and two classes: the nine means that can come out, as often as they should."""
    values, queries = np.array([[0.0, 0.1], [0.3, 0.9]]), np.array([1, 3])
    outcomes: dict[float, float] = {}
    for seeds in itertools.product(range(2), repeat=2):
        for classes in itertools.product(range(2), repeat=2):
            sample = [values[s, c] for s in seeds for c in classes for _ in range(queries[c])]
            key = round(sum(sample) / len(sample), 9)
            outcomes[key] = outcomes.get(key, 0) + 1 / 16
    found = crossed_bootstrap(values, queries, samples=8000).round(9)
    assert set(found.tolist()) == set(outcomes)
    for value, share in outcomes.items():
        assert (found == value).mean() == pytest.approx(share, abs=0.03)


@pytest.mark.parametrize("shape", [(1, 60), (30, 1)])  # over the classes of one seed, and over the seeds of one class
def test_along_one_axis_the_interval_is_scipys(shape: tuple[int, int]) -> None:
    values, _ = drawn(1, *shape)
    theirs = stats.bootstrap(
        (values.ravel(),), np.mean, n_resamples=20_000, method="percentile", random_state=np.random.default_rng(0)
    ).confidence_interval
    ours = mean_score(values, np.full(shape[1], 5), samples=20_000)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.004)


def test_intervals_of_a_difference_cover_the_truth_about_as_often_as_they_say() -> None:
    """Seeds and classes are both drawn anew; the truth is the mean over both without end."""
    generator = np.random.default_rng(0)
    truth, covered, classes_alone, runs = 0.03, 0, 0, 300
    for _ in range(runs):
        queries = generator.integers(3, 15, size=40)
        noise = generator.normal(0, 0.03, (8, 1)) + generator.normal(0, 0.05, 40) + generator.normal(0, 0.05, (8, 40))
        paired = truth + noise
        found = mean_score(paired, queries, confidence=0.9, samples=400, seed=int(generator.integers(2**31)))
        covered += found.low <= truth <= found.high
        less = mean_score(paired.mean(axis=0, keepdims=True), queries, confidence=0.9, samples=400)
        classes_alone += less.low <= truth <= less.high
    assert 0.84 <= covered / runs <= 0.96
    assert classes_alone / runs < 0.82  # which is why seeds are drawn too


def exact_p(values: np.ndarray, queries: np.ndarray) -> float:
    weighted = values.mean(axis=0) * queries
    sums = [abs(np.dot(signs, weighted)) for signs in itertools.product((-1, 1), repeat=len(queries))]
    return float(np.mean([value >= abs(weighted.sum()) - 1e-12 for value in sums]))


@pytest.mark.parametrize("seed", range(6))
def test_sign_flips_are_those_of_exact_enumeration(seed: int) -> None:
    values, queries = drawn(seed, seeds=3, classes=8)
    values -= 0.4
    assert sign_flip_p(values, queries, samples=20_000) == pytest.approx(exact_p(values, queries), abs=0.012)


def test_p_is_never_zero_and_one_class_shows_nothing() -> None:
    assert sign_flip_p(np.full((2, 30), 0.2), np.full(30, 4), samples=999) == 0.001
    assert sign_flip_p(np.array([[0.9]]), np.array([100])) == 1
    # five classes, all for the one method: 2 of 32 signs are as extreme
    assert sign_flip_p(np.full((1, 5), 0.1), np.full(5, 4)) == pytest.approx(2 / 32, abs=0.01)


@settings(deadline=None, max_examples=25)
@given(SEED)
def test_swapping_the_methods_swaps_the_sign(seed: int) -> None:
    first, queries = drawn(seed)
    second, _ = drawn(seed + 1)
    one, other = compare(first, second, queries, samples=500), compare(second, first, queries, samples=500)
    assert one.p == other.p
    assert one.estimate.value == pytest.approx(-other.estimate.value)
    assert (one.estimate.low, one.estimate.high) == pytest.approx((-other.estimate.high, -other.estimate.low))
    assert one.by_seed == pytest.approx([-value for value in other.by_seed])
    assert one.seeds_ahead + other.seeds_ahead == len(first)


@settings(deadline=None, max_examples=25)
@given(SEED, st.floats(-0.5, 0.5))
def test_what_both_gain_does_not_count(seed: int, gain: float) -> None:
    first, queries = drawn(seed)
    second, _ = drawn(seed + 1)
    by_class = gain * np.linspace(0, 1, first.shape[1])
    before, after = (compare(first + g, second + g, queries, samples=500) for g in (0, by_class))
    assert after.p == before.p
    assert after.estimate.value == pytest.approx(before.estimate.value)
    assert (after.estimate.low, after.estimate.high) == pytest.approx((before.estimate.low, before.estimate.high))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.integers(0, 3))
def test_holm_is_its_definition(p: list[float], missing: int) -> None:
    """The adjusted p is the largest of the multiplied ones up to its place; what is missing comes after all."""
    m = len(p) + missing
    found = holm([*p, *[math.nan] * missing])
    order = sorted(range(len(p)), key=lambda i: p[i])
    for place, i in enumerate(order):
        expected = min(1, max((m - j) * p[order[j]] for j in range(place + 1)))
        assert found[i] == pytest.approx(expected, abs=1e-6)
    assert all(math.isnan(value) for value in found[len(p) :])


def test_many_draws_come_in_parts_and_the_seed_decides_them() -> None:
    values, queries = drawn(0)
    assert len(crossed_bootstrap(values, queries, samples=1234)) == 1234
    assert np.array_equal(crossed_bootstrap(values, queries, 700), crossed_bootstrap(values, queries, 700))
    assert not np.array_equal(crossed_bootstrap(values, queries, 700), crossed_bootstrap(values, queries, 700, seed=1))
    halves = crossed_bootstrap(values, queries, 1000)
    assert not np.array_equal(halves[:500], halves[500:])


def test_missing_scores_are_errors() -> None:
    values, queries = drawn(0)
    for wrong in ((values[:0], queries), (np.where(values > 0.5, np.nan, values), queries), (values, queries * 0)):
        with pytest.raises(ValueError, match="at least one"):
            mean_score(*wrong)


def test_a_seed_with_as_many_hits_is_not_ahead() -> None:
    """Scores of classes are kept with six digits, so equal sums of hits need not give equal means."""
    queries = np.array([3, 6])
    ours, theirs = np.array([[0.666667, 0.0]]), np.array([[0.0, 0.333333]])  # two hits of nine each
    assert seed_scores(ours, queries) > seed_scores(theirs, queries)
    assert compare(ours, theirs, queries).seeds_ahead == 0
    assert compare(ours + np.array([0, 1 / 6]), theirs, queries).seeds_ahead == 1
