"""Calibrate the similarity below which a search has found no match."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from orthoproxy.core.errors import InputError
from orthoproxy.evaluation.bootstrap import Estimate, mean_estimate
from orthoproxy.evaluation.evaluate import Scoring, build_retrieval, for_all_queries
from orthoproxy.evaluation.retrieval import Retrieval, rank_positives

ROUNDING = 1e-9  # 0.01 * 100 may be a little less than 1


def require_rate(false_match_rate: float) -> None:
    """Raise InputError unless a rate is above 0 and below 1."""
    if not 0 < false_match_rate < 1:
        raise InputError(f"{false_match_rate:g}", field="false_match_rate", expected="above 0 and below 1")


@dataclass(frozen=True)
class NoMatchCalibration:
    """Similarity of each query to the most similar image of its own class, and of any other class.

    A search with a threshold answers a query with its best hit, or with "no match" where the hit is less similar than
    the threshold. The **false-match rate** is the share of queries answered although their class is not in the
    gallery; the best hit of such a query is the most similar image of another class, so the rate is that of
    ``other >= threshold``. The **match rate** is the share of ``same >= threshold`` among the queries that have an
    image of their class in the gallery.

    Parameters
    ----------
    same
        Cosine of each query with the most similar other image of its class; NaN where there is none.
    other
        Cosine of each query with the most similar image of another class.
    classes
        Class number of each query.
    gallery
        Number of images searched. The larger it is, the more similar the best wrong hit: the rates hold for
        collections of about this size.

    Examples
    --------
    >>> calibration = NoMatchCalibration(
    ...     same=np.array([0.9, 0.7, 0.8]), other=np.array([0.2, 0.5, 0.6]), classes=np.array([0, 0, 1]), gallery=3
    ... )
    >>> print(calibration.false_match_rate(0.55), "/", calibration.match_rate(0.75))
    33.3 [0.0, 100.0] / 66.7 [50.0, 100.0]
    """

    same: Float[np.ndarray, " Q"]
    other: Float[np.ndarray, " Q"]
    classes: Int[np.ndarray, " Q"]
    gallery: int

    def false_match_rate(self, threshold: float, samples: int = 1000) -> Estimate:
        """Return the share of queries of unknown classes that get an answer, with its interval over classes."""
        return self._rate(self.other, threshold, samples)

    def match_rate(self, threshold: float, samples: int = 1000) -> Estimate:
        """Return the share of queries whose own class is found, with its interval over classes."""
        return self._rate(self.same, threshold, samples)

    def threshold(self, false_match_rate: float) -> float | None:
        """Return the lowest threshold with at most this false-match rate, halfway to the next similarity above it.

        None with fewer queries than ``1 / false_match_rate``: not one of them could be wrong. Raises InputError unless
        the rate is a fraction above 0 and below 1.
        """
        require_rate(false_match_rate)
        if false_match_rate * len(self.other) < 1 - ROUNDING:
            return None
        ascending = np.sort(self.other)
        allowed = min(math.floor(false_match_rate * len(ascending) + ROUNDING), len(ascending) - 1)
        rejected = ascending[-1 - allowed]  # the largest similarity that must not match
        above = ascending[np.searchsorted(ascending, rejected, side="right") :]
        return float((rejected + above[0]) / 2 if len(above) else np.nextafter(rejected, np.inf))

    def curve(self) -> tuple[Float[np.ndarray, " P"], Float[np.ndarray, " P"]]:
        """Return the ROC curve: the possible false-match rates, ascending from 0 to 1, and the match rate at each."""
        levels = np.unique(self.other)
        between = (levels[1:] + levels[:-1]) / 2
        thresholds = np.concatenate([levels[:1], between, [np.nextafter(levels[-1], np.inf)]])[::-1]
        known = self.same[~np.isnan(self.same)]
        false, found = (1 - np.searchsorted(np.sort(x), thresholds) / max(1, len(x)) for x in (self.other, known))
        return false, found

    def _rate(self, similarity: Float[np.ndarray, " Q"], threshold: float, samples: int) -> Estimate:
        known = ~np.isnan(similarity)
        answered = (similarity[known] >= threshold).astype(np.float64)
        return mean_estimate(answered, self.classes[known], samples)


def calibrate_no_match(
    embeddings: Float[np.ndarray, "N D"], table: pd.DataFrame, scoring: Scoring
) -> NoMatchCalibration | None:
    """Compare images that were not trained on with each other, in one pass over the pairs.

    Parameters
    ----------
    embeddings, table
        As in `score`; `role` tells queries from gallery.
    scoring
        Where and in which blocks to compare, and whether processes share the work. A query's own group is left out of
        its own class as in the scores, but not of other classes: a query of an unknown class may meet its own group.

    Returns
    -------
    NoMatchCalibration or None
        None unless some query has images both of its own and of another class in the gallery.

    Examples
    --------
    >>> from orthoproxy.data import make_table
    >>> points = np.array([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]])
    >>> calibration = calibrate_no_match(points, make_table(["1", "2", "3"], ["a", "a", "b"]), Scoring())
    >>> calibration.same.round(2), calibration.other.round(2)
    (array([0.8, 0.8, nan]), array([0. , 0.6, 0.6]))
    """
    retrieval = build_retrieval(embeddings, table, scoring.rule(table), scoring.exclude_duplicates)
    same, other = best_similarities(retrieval, scoring)
    compared = ~np.isnan(other)  # none where there is one class only
    if np.isnan(same[compared]).all():
        return None
    classes = retrieval.labels[retrieval.queries]
    return NoMatchCalibration(same[compared], other[compared], classes[compared], len(retrieval.gallery))


def best_similarities(
    retrieval: Retrieval, scoring: Scoring
) -> tuple[Float[np.ndarray, " Q"], Float[np.ndarray, " Q"]]:
    """Return each query's largest cosine with an image of its class and with one of another; NaN without any."""

    def compute(part: Retrieval) -> dict[str, np.ndarray]:
        rankings = rank_positives(part, scoring.block_memory_mb, scoring.device)
        best = [(x.best_positive.numpy(), x.best_of_other_class.numpy()) for x in rankings]
        same, other = (np.concatenate(blocks) for blocks in zip(*best, strict=True))
        return {"same": same, "other": other}

    best = for_all_queries(compute, retrieval, scoring.shared)
    same, other = (np.where(np.isinf(x), np.nan, x) for x in (best["same"], best["other"]))
    return same, other
