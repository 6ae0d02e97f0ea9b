"""Intervals by the class bootstrap: images of a class are not independent, so whole classes are drawn."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int


@dataclass(frozen=True)
class Estimate:
    """A score and its interval, as fractions.

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


def class_draws(num_classes: int, draws: int = 1000, seed: int = 0) -> Float[np.ndarray, "W C"]:
    """Draw classes with replacement: how often each class is in each bootstrap sample.

    Parameters
    ----------
    num_classes
        C.
    draws
        W, the number of samples.
    seed
        The same seed gives the same samples, which makes the comparison of two results a paired one.

    Returns
    -------
    numpy.ndarray
        Each row sums to C.

    Examples
    --------
    >>> class_draws(4, draws=2).sum(axis=1)
    array([4., 4.])
    """
    generator = np.random.default_rng(seed)
    return generator.multinomial(num_classes, np.full(num_classes, 1 / num_classes), size=draws).astype(np.float64)


def resampled_means(
    values: Float[np.ndarray, " Q"], classes: Int[np.ndarray, " Q"], weights: Float[np.ndarray, "W C"]
) -> Float[np.ndarray, " W"]:
    """Average the queries' values over each bootstrap sample of classes.

    Parameters
    ----------
    values
        One a query.
    classes
        Class of each query, 0 to C - 1.
    weights
        From `class_draws`.

    Returns
    -------
    numpy.ndarray
        One mean a sample; NaN for a sample without queries.

    Examples
    --------
    >>> resampled_means(np.array([1.0, 0.0, 0.0]), np.array([0, 0, 1]), np.array([[2.0, 0.0], [1.0, 1.0]])).round(2)
    array([0.5 , 0.33])
    """
    num_classes = weights.shape[1]
    sums = np.bincount(classes, weights=values, minlength=num_classes)
    sizes = np.bincount(classes, minlength=num_classes)
    with np.errstate(invalid="ignore"):
        return (weights @ sums) / (weights @ sizes)


def estimate(value: float, resampled: Float[np.ndarray, " W"], confidence: float = 0.95) -> Estimate:
    """Put a percentile interval around a value.

    Parameters
    ----------
    value
        The score of the data as they are.
    resampled
        The score of each bootstrap sample; NaN is left out.
    confidence
        Coverage of the interval, for example 0.95.

    Returns
    -------
    Estimate
        The interval always holds the value.

    Examples
    --------
    >>> print(estimate(0.5, np.linspace(0, 1, 101)))
    50.0 [2.5, 97.5]
    """
    tail = 100 * (1 - confidence) / 2
    low, high = np.nanpercentile(resampled, [tail, 100 - tail])
    return Estimate(float(value), float(min(low, value)), float(max(high, value)))
