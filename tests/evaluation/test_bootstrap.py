"""The class bootstrap against explicit resampling, and the coverage of its intervals."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orthoproxy.evaluation import Estimate, class_draws, estimate, resampled_means


@pytest.mark.parametrize("num_classes", [1, 2, 7, 300])
def test_each_draw_holds_as_many_classes_as_there_are_each_equally_often(num_classes: int) -> None:
    weights = class_draws(num_classes, draws=2000, seed=1)
    assert weights.shape == (2000, num_classes)
    assert (weights.sum(axis=1) == num_classes).all()
    assert (weights >= 0).all() and (weights == weights.round()).all()
    # the mean of 2000 counts of variance about 1 lies within 5 / sqrt(2000) of 1
    assert weights.mean(axis=0) == pytest.approx(np.ones(num_classes), abs=0.12)
    assert weights.var(axis=0).mean() == pytest.approx(1 - 1 / num_classes, abs=0.05)


def test_draws_depend_on_the_seed_alone() -> None:
    assert np.array_equal(class_draws(20, 5, seed=3), class_draws(20, 5, seed=3))
    assert not np.array_equal(class_draws(20, 5, seed=3), class_draws(20, 5, seed=4))
    assert np.array_equal(class_draws(20, 5), class_draws(20, 5))


@given(st.integers(0, 2**32 - 1), st.integers(1, 12))
def test_resampled_means_are_those_of_explicit_resampling(seed: int, num_classes: int) -> None:
    generator = np.random.default_rng(seed)
    classes = np.concatenate([np.arange(num_classes), generator.integers(num_classes, size=20)])
    values = generator.random(len(classes))
    weights = class_draws(num_classes, draws=4, seed=seed)
    expected = []
    for counts in weights.astype(int):
        sample = []
        for c, times in enumerate(counts):
            for _ in range(times):
                sample.extend(values[classes == c])
        expected.append(sum(sample) / len(sample))
    assert resampled_means(values, classes, weights) == pytest.approx(expected)


def test_a_sample_without_queries_is_left_out_of_the_interval() -> None:
    resampled = resampled_means(np.array([1.0, 0.0]), np.array([0, 0]), np.array([[0.0, 2.0], [1.0, 1.0]]))
    assert np.isnan(resampled[0]) and resampled[1] == 0.5
    assert estimate(0.5, resampled) == Estimate(0.5, 0.5, 0.5)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=50), st.floats(0, 1), st.floats(0.5, 0.99), st.floats(0.001, 0.4))
def test_an_interval_holds_its_value_and_grows_with_confidence(
    resampled: list[float], value: float, confidence: float, less: float
) -> None:
    wide, narrow = (estimate(value, np.array(resampled), c) for c in (confidence, confidence - less))
    assert wide.low <= narrow.low <= value <= narrow.high <= wide.high
    assert wide.low >= min(*resampled, value) and wide.high <= max(*resampled, value)


def test_percentiles_are_the_tails() -> None:
    result = estimate(0.5, np.linspace(0, 1, 1001), confidence=0.9)
    assert (result.low, result.high) == pytest.approx((0.05, 0.95))


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    """Classes of differing size and difficulty; the truth is the mean over classes without end."""
    generator = np.random.default_rng(0)
    confidence, truth, covered, runs = 0.9, 0.6, 0, 400
    naive_covered = 0
    for _ in range(runs):
        sizes = generator.integers(3, 9, size=50)
        classes = np.repeat(np.arange(50), sizes)
        skill = generator.beta(1.2, 0.8, size=50)  # mean 0.6
        values = (generator.random(len(classes)) < skill[classes]).astype(float)
        resampled = resampled_means(values, classes, class_draws(50, 300, seed=int(generator.integers(2**31))))
        result = estimate(values.mean(), resampled, confidence)
        covered += result.low <= truth <= result.high
        half = 1.645 * values.std() / len(values) ** 0.5  # as if images were independent
        naive_covered += abs(values.mean() - truth) <= half
    assert 0.84 <= covered / runs <= 0.95
    assert naive_covered / runs < 0.8  # which is why whole classes are drawn


def test_an_estimate_reads_as_percent() -> None:
    assert str(Estimate(0.61234, 0.5, 0.7)) == "61.2 [50.0, 70.0]"
