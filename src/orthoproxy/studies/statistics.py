"""Methods compared over seeds and classes: intervals by the crossed bootstrap, p by sign flips, and Holm's correction.

A method's scores are a matrix, one row a seed and one column a class, each entry the mean over the class's queries.
Both are samples: classes stand for the classes that a user will have, seeds for the trainings that might have been.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from orthoproxy.evaluation import Estimate, class_counts, estimate
from orthoproxy.studies.plan import TIE

DRAWS = 10_000
AT_ONCE = 500  # draws, which bounds memory with thousands of classes
SEEDS_TO_SPEAK_OF_NEW_ONES = 8


@dataclass(frozen=True)
class Difference:
    """How much better one method is than another on the same seeds and classes; see `compare`.

    Parameters
    ----------
    estimate
        Mean with interval.
    p
        Of the sign flips, for one comparison alone.
    by_seed
        The difference of each seed.

    Examples
    --------
    >>> Difference(Estimate(0.02, 0.01, 0.03), p=0.001, by_seed=[0.01, 0.03]).ahead
    2
    """

    estimate: Estimate
    p: float
    by_seed: list[float]

    @property
    def ahead(self) -> int:
        """The number of seeds with which the first method is better, not counting those with as many hits."""
        return sum(value > TIE for value in self.by_seed)


def scores_of_seeds(values: Float[np.ndarray, "S C"], queries: Int[np.ndarray, " C"]) -> Float[np.ndarray, " S"]:
    """Average over the classes, each counted by its queries: the score of each seed.

    Parameters
    ----------
    values
        Mean score of each class, one row a seed.
    queries
        Number of scored queries of each class.

    Returns
    -------
    numpy.ndarray
        The same as the mean over all queries.

    Raises
    ------
    ValueError
        If there is no seed or no class, or a class has no score or no query.

    Examples
    --------
    >>> scores_of_seeds(np.array([[1.0, 0.0], [0.5, 0.5]]), np.array([3, 1]))
    array([0.75, 0.5 ])
    """
    _check(values, queries)
    return values @ queries / queries.sum()


def standard_deviation(scores: Float[np.ndarray, " S"]) -> float:
    """Compute the standard deviation over seeds, with S - 1 in the denominator.

    Parameters
    ----------
    scores
        One a seed.

    Returns
    -------
    float
        NaN for a single seed, which has no spread.

    Examples
    --------
    >>> round(standard_deviation(np.array([0.1, 0.3])), 4), standard_deviation(np.array([0.1]))
    (0.1414, nan)
    """
    return float(np.std(scores, ddof=1)) if len(scores) > 1 else float("nan")


def crossed_bootstrap(
    values: Float[np.ndarray, "S C"], queries: Int[np.ndarray, " C"], draws: int = DRAWS, seed: int = 0
) -> Float[np.ndarray, " W"]:
    """Draw seeds and classes with replacement, independently of each other, and average what was drawn.

    If a draw holds seed s ``a_s`` times and class c ``b_c`` times, and class c has ``n_c`` queries, then the draw gives
    ``sum a_s b_c n_c v_sc / sum a_s b_c n_c``, sums running over all seeds and classes.

    Parameters
    ----------
    values
        Mean score of each class, or difference of two, one row a seed. A single seed is always drawn, so that the
        interval is one over classes alone.
    queries
        Number of scored queries of each class.
    draws
        W.
    seed
        The same seed gives the same draws, whatever the values.

    Returns
    -------
    numpy.ndarray
        One mean a draw.

    Raises
    ------
    ValueError
        As `scores_of_seeds`.

    References
    ----------
    Owen, "The pigeonhole bootstrap", Annals of Applied Statistics 2007, arXiv 0712.1111: for two crossed samples the
    variance is overestimated a little, never much underestimated.

    Examples
    --------
    >>> crossed_bootstrap(np.full((3, 2), 0.5), np.array([4, 6]), draws=2)
    array([0.5, 0.5])
    """
    _check(values, queries)
    generator = np.random.default_rng(seed)
    means = []
    for start in range(0, draws, AT_ONCE):
        part = min(AT_ONCE, draws - start)
        of_seeds, of_classes = (
            np.concatenate(list(class_counts(n, part, int(generator.integers(2**63))))) for n in values.shape
        )
        weights = of_classes * queries
        means.append(((of_seeds @ values) * weights).sum(axis=1) / (len(values) * weights.sum(axis=1)))
    return np.concatenate(means)


def mean_score(
    values: Float[np.ndarray, "S C"],
    queries: Int[np.ndarray, " C"],
    confidence: float = 0.95,
    draws: int = DRAWS,
    seed: int = 0,
) -> Estimate:
    """Average over seeds and classes, with the percentile interval of `crossed_bootstrap`.

    Parameters
    ----------
    values, queries, draws, seed
        As in `crossed_bootstrap`.
    confidence
        Coverage of the interval.

    Returns
    -------
    Estimate
        Of new classes of the same kind; with few seeds it says little of new seeds.

    Raises
    ------
    ValueError
        As `scores_of_seeds`.

    Examples
    --------
    >>> print(mean_score(np.array([[0.5, 0.7], [0.6, 0.6]]), np.array([5, 5])))
    60.0 [50.0, 70.0]
    """
    value = scores_of_seeds(values, queries).mean()
    return estimate(value, crossed_bootstrap(values, queries, draws, seed), confidence)


def sign_flip_p(
    values: Float[np.ndarray, "S C"], queries: Int[np.ndarray, " C"], draws: int = DRAWS, seed: int = 0
) -> float:
    """Test whether differences could be chance: how often random signs of the classes make as large a mean.

    Let ``d_c`` be the difference of class c, averaged over the seeds, and ``T = |sum n_c d_c|``. If the two methods do
    equally well, each ``d_c`` might as well have the other sign. So all signs are drawn at random, and
    ``p = (1 + number of draws with |sum ± n_c d_c| >= T) / (1 + number of draws)``.

    Parameters
    ----------
    values
        Differences of each class between two methods, one row a seed.
    queries
        Number of scored queries of each class.
    draws
        How many; p is never below 1 / (1 + draws).
    seed
        Of the draws.

    Returns
    -------
    float
        Two-sided. It is about new classes for these seeds, not about new seeds. With fewer than six classes it cannot
        fall below 0.05, since there are only ``2^C`` signs.

    Raises
    ------
    ValueError
        As `scores_of_seeds`.

    References
    ----------
    Fisher, The Design of Experiments, 1935, section 21. The 1 + : Phipson and Smyth, "Permutation p-values should never
    be zero", 2010, arXiv 1603.05766.

    Examples
    --------
    >>> f"{sign_flip_p(np.full((1, 20), 0.1), np.full(20, 5)):.4f}"  # better on each of 20 classes
    '0.0001'
    >>> sign_flip_p(np.zeros((1, 20)), np.full(20, 5))
    1.0
    """
    _check(values, queries)
    weighted = values.mean(axis=0) * queries
    observed = abs(weighted.sum())
    as_large = observed - 1e-9 * np.abs(weighted).sum()  # rounding must not part a draw from its mirror image
    generator = np.random.default_rng(seed)
    count = 0
    for start in range(0, draws, AT_ONCE):
        signs = 2.0 * generator.integers(2, size=(min(AT_ONCE, draws - start), len(weighted))) - 1
        count += int((np.abs(signs @ weighted) >= as_large).sum())
    return (1 + count) / (1 + draws)


def compare(
    values: Float[np.ndarray, "S C"],
    baseline: Float[np.ndarray, "S C"],
    queries: Int[np.ndarray, " C"],
    confidence: float = 0.95,
    draws: int = DRAWS,
    seed: int = 0,
) -> Difference:
    """Compare two methods pair by pair: the same seed and the same class of both.

    Parameters
    ----------
    values, baseline
        Mean score of each class, one row a seed, rows and columns in the same order.
    queries, confidence, draws, seed
        As in `mean_score`.

    Returns
    -------
    Difference
        The mean of `values - baseline` with the interval of `crossed_bootstrap`, the p of `sign_flip_p`, and the
        difference of each seed.

    Raises
    ------
    ValueError
        As `scores_of_seeds`.

    Examples
    --------
    >>> difference = compare(np.array([[0.6, 0.8], [0.7, 0.7]]), np.full((2, 2), 0.6), np.array([5, 5]))
    >>> print(difference.estimate, difference.ahead)
    10.0 [0.0, 20.0] 2
    """
    paired = values - baseline
    return Difference(
        mean_score(paired, queries, confidence, draws, seed),
        sign_flip_p(paired, queries, draws, seed),
        scores_of_seeds(paired, queries).tolist(),
    )


def holm(p: Sequence[float]) -> list[float]:
    """Correct p for being one of several: the chance that any of them looks so good by luck stays what p says.

    The smallest of m is multiplied by m, the next by m - 1 and so on; none falls below the one before it, and none
    exceeds 1.

    Parameters
    ----------
    p
        Of all comparisons that were named before running. NaN for one whose result is still missing: it counts in m,
        and as larger than the others.

    Returns
    -------
    list of float
        In the same order; NaN stays NaN.

    References
    ----------
    Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 1979.

    Examples
    --------
    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    given = np.asarray(p, dtype=np.float64)
    order = np.argsort(given, kind="stable")  # NaN comes last
    stepped = given[order] * np.arange(len(given), 0, -1)
    corrected = np.empty_like(given)
    corrected[order] = np.minimum(np.maximum.accumulate(stepped), 1)
    return corrected.tolist()


def reach(seeds: int) -> str:
    """Say what a comparison with so many seeds speaks of.

    Parameters
    ----------
    seeds
        Their number.

    Returns
    -------
    str
        A sentence or two.

    Examples
    --------
    >>> reach(3)
    'Speaks of new classes, for the 3 seeds that were trained; claims about new seeds need 8 or more.'
    """
    if seeds >= SEEDS_TO_SPEAK_OF_NEW_ONES:
        both = f"Intervals speak of new classes and, with {seeds} seeds, of new seeds at the settings chosen"
        return f"{both}; p speaks of new classes, for these seeds."
    trained = "the one seed that was" if seeds == 1 else f"the {seeds} seeds that were"
    needed = f"claims about new seeds need {SEEDS_TO_SPEAK_OF_NEW_ONES} or more"
    return f"Speaks of new classes, for {trained} trained; {needed}."


def _check(values: Float[np.ndarray, "S C"], queries: Int[np.ndarray, " C"]) -> None:
    if 0 in values.shape:
        raise ValueError(f"values: shape {values.shape}; give at least one seed and one class")
    if not np.isfinite(values).all() or (queries < 1).any():
        raise ValueError("values, queries: a class has no score or no query; give classes with scored queries only")
