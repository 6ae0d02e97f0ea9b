"""Compare methods over seeds and classes: crossed bootstrap intervals, sign-flip tests, Holm's correction.

The scores of a method are a matrix with one row per seed and one column per class; an entry is the mean over the
queries of that class. Both axes are samples: the classes stand for future classes, the seeds for other trainings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Float, Int, Integer

from orthoproxy.evaluation import Estimate
from orthoproxy.evaluation.bootstrap import estimate

SAMPLES = 10_000
CHUNK = 500  # samples held in memory at once
SCORE_TOLERANCE = 1e-6  # class scores are stored with six digits; smaller differences are rounding
MIN_SEEDS = 8  # fewer say little about other seeds


@dataclass(frozen=True)
class Difference:
    """Difference of two methods on the same seeds and classes; the result of `compare`.

    Parameters
    ----------
    estimate
        Mean difference with its interval over seeds and classes.
    p
        P value of the sign-flip test over the classes.
    by_seed
        Mean difference of each seed.
    """

    estimate: Estimate
    p: float
    by_seed: list[float]

    @property
    def seeds_ahead(self) -> int:
        """Number of seeds with a positive difference."""
        return sum(value > SCORE_TOLERANCE for value in self.by_seed)


def seed_scores(values: Float[np.ndarray, "S C"], queries: Int[np.ndarray, " C"]) -> Float[np.ndarray, " S"]:
    """Average class scores weighted by queries, which is the mean over all queries of each seed."""
    if 0 in values.shape:
        raise ValueError(f"values has shape {values.shape} (expected at least one seed and one class)")
    if not np.isfinite(values).all() or (queries < 1).any():
        raise ValueError("values must be finite and each class must have at least one query")
    return values @ queries / queries.sum()


def crossed_bootstrap(
    values: Float[np.ndarray, "S C"], queries: Int[np.ndarray, " C"], samples: int = SAMPLES, seed: int = 0
) -> Float[np.ndarray, " W"]:
    """Resample seeds and classes independently with replacement, and return the mean of each sample.

    If a sample contains seed s ``a_s`` times and class c ``b_c`` times, and class c has ``n_c`` queries, its mean is
    ``sum a_s b_c n_c v_sc / sum a_s b_c n_c`` over all seeds and classes.

    Parameters
    ----------
    values
        Mean score of each class, or a difference of two, one row per seed. With one seed the result describes classes
        only.
    queries
        Number of scored queries of each class.
    samples, seed
        W, the number of bootstrap samples; seed of the generator.

    References
    ----------
    Owen, "The pigeonhole bootstrap", Annals of Applied Statistics 2007, arXiv:0712.1111: for two crossed factors the
    variance is slightly overestimated, never much underestimated.

    Examples
    --------
    >>> crossed_bootstrap(np.full((3, 2), 0.5), np.array([4, 6]), samples=2)
    array([0.5, 0.5])
    """
    seed_scores(values, queries)
    generator = np.random.default_rng(seed)
    means = []
    for start in range(0, samples, CHUNK):
        size = min(CHUNK, samples - start)
        seed_counts, class_counts = (_resample(n, size, int(generator.integers(2**63))) for n in values.shape)
        weights = class_counts * queries.astype(np.float64)
        means.append(((seed_counts @ values) * weights).sum(axis=1) / (len(values) * weights.sum(axis=1)))
    return np.concatenate(means)


@lru_cache(maxsize=4 * SAMPLES // CHUNK)  # all methods of a study are averaged over the same samples
def _resample(n: int, samples: int, seed: int) -> Integer[np.ndarray, "W n"]:
    """Count how often each of n units occurs in each bootstrap sample."""
    counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=samples)
    return counts.astype(np.min_scalar_type(n))


def mean_score(
    values: Float[np.ndarray, "S C"],
    queries: Int[np.ndarray, " C"],
    confidence: float = 0.95,
    samples: int = SAMPLES,
    seed: int = 0,
) -> Estimate:
    """Return the mean over seeds and classes with the percentile interval of `crossed_bootstrap`."""
    return estimate(seed_scores(values, queries).mean(), crossed_bootstrap(values, queries, samples, seed), confidence)


def sign_flip_p(
    values: Float[np.ndarray, "S C"], queries: Int[np.ndarray, " C"], samples: int = SAMPLES, seed: int = 0
) -> float:
    """Two-sided p value of the class differences, by randomly flipping their signs.

    Let ``d_c`` be the difference of class c averaged over the seeds, and ``T = |sum n_c d_c|``. If the methods are
    equally good, each ``d_c`` is as likely to have the opposite sign, so
    ``p = (1 + #{samples with |sum ± n_c d_c| >= T}) / (1 + #samples)``. It refers to new classes and these seeds. With
    fewer than six classes it cannot fall below 0.05.

    Parameters
    ----------
    values
        Difference of each class between two methods, one row per seed.
    queries
        Number of scored queries of each class.
    samples, seed
        Number of sign vectors, with p at least ``1 / (1 + samples)``; seed of the generator.

    References
    ----------
    Fisher, The Design of Experiments, 1935, section 21. For the ``1 +``: Phipson and Smyth, "Permutation p-values
    should never be zero", 2010, arXiv:1603.05766.

    Examples
    --------
    >>> round(sign_flip_p(np.full((1, 20), 0.1), np.full(20, 5)), 4)  # better on each of 20 classes
    0.0001
    """
    seed_scores(values, queries)
    weighted = values.mean(axis=0) * queries
    threshold = abs(weighted.sum()) - 1e-9 * np.abs(weighted).sum()  # a sample and its mirror image must both count
    generator = np.random.default_rng(seed)
    count = 0
    for start in range(0, samples, CHUNK):
        signs = 2.0 * generator.integers(2, size=(min(CHUNK, samples - start), len(weighted))) - 1
        count += int((np.abs(signs @ weighted) >= threshold).sum())
    return (1 + count) / (1 + samples)


def compare(
    values: Float[np.ndarray, "S C"],
    baseline: Float[np.ndarray, "S C"],
    queries: Int[np.ndarray, " C"],
    confidence: float = 0.95,
    samples: int = SAMPLES,
    seed: int = 0,
) -> Difference:
    """Compare two methods on the same seeds and classes.

    Parameters
    ----------
    values, baseline
        Mean score of each class, one row per seed, in the same order.
    queries
        Number of scored queries of each class.
    confidence, samples, seed
        Coverage of the interval, number of samples, seed of the generator.

    Examples
    --------
    >>> result = compare(np.array([[0.6, 0.8], [0.7, 0.7]]), np.full((2, 2), 0.6), np.array([5, 5]))
    >>> print(result.estimate, result.seeds_ahead)
    10.0 [0.0, 20.0] 2
    """
    paired = values - baseline
    return Difference(
        mean_score(paired, queries, confidence, samples, seed),
        sign_flip_p(paired, queries, samples, seed),
        seed_scores(paired, queries).tolist(),
    )


def holm(p: Sequence[float]) -> list[float]:
    """Correct p values for multiple comparisons with Holm's step-down method.

    Parameters
    ----------
    p
        P values of all planned comparisons. NaN marks a missing one: it counts as a comparison, ranks last, and stays.

    References
    ----------
    Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 1979.

    Examples
    --------
    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    p_values = np.asarray(p, dtype=np.float64)
    order = np.argsort(p_values, kind="stable")  # NaN sorts last
    corrected = np.empty_like(p_values)
    corrected[order] = np.minimum(np.maximum.accumulate(p_values[order] * np.arange(len(p_values), 0, -1)), 1)
    return corrected.tolist()
