"""The class bootstrap against explicit resampling, its coverage, and its memory."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orthoproxy.evaluation.bootstrap import bootstrap_means, class_counts, estimate


def all_counts(num_classes: int, samples: int, seed: int = 0, chunk_memory_mb: float = 16.0) -> np.ndarray:
    return np.concatenate(list(class_counts(num_classes, samples, seed, chunk_memory_mb)))


def test_samples_depend_on_the_seed_alone_not_on_the_chunks() -> None:
    assert np.array_equal(all_counts(20, 9, seed=3), all_counts(20, 9, seed=3, chunk_memory_mb=0.0007))
    assert not np.array_equal(all_counts(20, 5, seed=3), all_counts(20, 5, seed=4))


@given(st.integers(0, 2**32 - 1), st.integers(1, 12))
def test_bootstrap_means_are_those_of_explicit_resampling(seed: int, num_classes: int) -> None:
    generator = np.random.default_rng(seed)
    classes = np.concatenate([np.arange(num_classes), generator.integers(num_classes, size=20)])
    values = generator.random((2, len(classes)))
    expected = [[], []]
    for counts in all_counts(num_classes, 4, seed).astype(int):
        for row, means in zip(values, expected, strict=True):
            sample = [x for c, times in enumerate(counts) for _ in range(times) for x in row[classes == c]]
            means.append(sum(sample) / len(sample))
    assert bootstrap_means(values, classes, 4, seed) == pytest.approx(np.array(expected))
    assert bootstrap_means(values[0], classes, 4, seed) == pytest.approx(np.array(expected[0]))


def test_memory_does_not_grow_with_samples_times_classes() -> None:
    """All counts of 1,000 samples would take 8 kB per class; what is allowed beyond a chunk are a few arrays of C."""

    def peak(num_classes: int) -> int:
        classes, values = np.arange(num_classes), np.ones(num_classes)
        tracemalloc.start()
        bootstrap_means(values, classes, samples=1000)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    few, many = peak(10_000), peak(20_000)
    assert many - few < 10_000 * 500


@given(st.lists(st.floats(0, 1), min_size=1, max_size=50), st.floats(0, 1), st.floats(0.5, 0.99), st.floats(0.001, 0.4))
def test_an_interval_holds_its_value_and_grows_with_confidence(resampled, value, confidence, less) -> None:
    wide, narrow = (estimate(value, np.array(resampled), c) for c in (confidence, confidence - less))
    assert wide.low <= narrow.low <= value <= narrow.high <= wide.high
    assert wide.low >= min(*resampled, value) and wide.high <= max(*resampled, value)


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    """Classes of differing size and difficulty; the truth is the mean over infinitely many classes."""
    generator = np.random.default_rng(0)
    confidence, truth, covered, runs = 0.9, 0.6, 0, 400
    for _ in range(runs):
        sizes = generator.integers(3, 9, size=50)
        classes = np.repeat(np.arange(50), sizes)
        skill = generator.beta(1.2, 0.8, size=50)  # mean 0.6
        values = (generator.random(len(classes)) < skill[classes]).astype(float)
        resampled = bootstrap_means(values, classes, 300, seed=int(generator.integers(2**31)))
        result = estimate(values.mean(), resampled, confidence)
        covered += result.low <= truth <= result.high
    assert 0.84 <= covered / runs <= 0.95
