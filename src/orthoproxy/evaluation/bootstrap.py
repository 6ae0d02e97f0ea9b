"""Confidence intervals by the class bootstrap: images of a class are not independent, so whole classes are drawn."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int


@dataclass(frozen=True)
class Estimate:
    """A score with its confidence interval, as fractions; printed in percent.

    Examples
    --------
    >>> print(Estimate(0.6123, 0.58, 0.64))
    61.2 [58.0, 64.0]
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{100 * self.value:.1f} [{100 * self.low:.1f}, {100 * self.high:.1f}]"


def class_counts(
    num_classes: int, samples: int = 1000, seed: int = 0, chunk_memory_mb: float = 16.0
) -> Iterator[Float[np.ndarray, "w C"]]:
    """Yield how often each class occurs in each bootstrap sample, in chunks of samples; equal seeds pair results."""
    generator = np.random.default_rng(seed)
    probabilities = np.full(num_classes, 1 / num_classes)
    chunk = max(1, int(chunk_memory_mb * 2**20 / (16 * num_classes)))  # drawn as int64, returned as float64
    for start in range(0, samples, chunk):
        size = min(chunk, samples - start)
        yield generator.multinomial(num_classes, probabilities, size=size).astype(np.float64)


def bootstrap_means(
    values: Float[np.ndarray, "*M Q"], classes: Int[np.ndarray, " Q"], samples: int = 1000, seed: int = 0
) -> Float[np.ndarray, "*M W"]:
    """Average values of queries, one row per metric, over bootstrap samples of their classes."""
    rows, (_, classes) = np.atleast_2d(values), np.unique(classes, return_inverse=True)
    sizes = np.bincount(classes)
    sums = np.stack([*(np.bincount(classes, weights=row) for row in rows), sizes.astype(np.float64)], axis=1)  # C M+1
    totals = np.concatenate([counts @ sums for counts in class_counts(len(sizes), samples, seed)])  # W M+1
    means = (totals[:, :-1] / totals[:, -1:]).T
    return means.reshape(*values.shape[:-1], samples)


def estimate(value: float, resampled: Float[np.ndarray, " W"], confidence: float = 0.95) -> Estimate:
    """Return the percentile interval of the samples around a value, extended to contain it."""
    tail = 100 * (1 - confidence) / 2
    low, high = np.percentile(resampled, [tail, 100 - tail])
    return Estimate(float(value), float(min(low, value)), float(max(high, value)))


def mean_estimate(
    values: Float[np.ndarray, " Q"], classes: Int[np.ndarray, " Q"], samples: int = 1000, confidence: float = 0.95
) -> Estimate:
    """Average values of queries, with the interval over classes."""
    return estimate(float(values.mean()), bootstrap_means(values, classes, samples), confidence)
