"""When a search has found nothing: how alike the best hit is where the class of a query is there, and where not."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int

from orthoproxy.core.errors import InputError
from orthoproxy.evaluation.bootstrap import Estimate, bootstrap_means, estimate
from orthoproxy.evaluation.evaluate import Scoring, build_retrieval
from orthoproxy.evaluation.neighbours import Retrieval, comparisons

ROUNDING = 1e-9  # 0.01 * 100 may be a little less than 1


@dataclass(frozen=True)
class NoMatchCalibration:
    """How alike each query is to the most similar image of its own class, and of any other class.

    A search with a threshold answers a query with its best hit, or with "no match" where that is less similar than the
    threshold. Of queries whose class is not in the gallery at all, some are answered all the same; their share is the
    **false-match rate**. The best hit of such a query is the most similar image of another class, so the rate is the
    share of queries with ``other >= threshold``. The **match rate** is the share of queries whose own class is
    found, ``same >= threshold``, among those that have another image of it in the gallery.

    Parameters
    ----------
    same
        Cosine of each query with the most similar other image of its class; NaN where there is none.
    other
        Cosine of each query with the most similar image of another class.
    classes
        Class number of each query.
    gallery
        Number of images searched. The more there are, the more alike is the best of the wrong ones: the rates hold for
        collections of about this size.

    Examples
    --------
    >>> matching = NoMatchCalibration(np.array([0.9, 0.7, 0.8]), np.array([0.2, 0.5, 0.6]), np.array([0, 0, 1]), gallery=3)
    >>> print(matching.false_match_rate(0.55), "/", matching.match_rate(0.75))
    33.3 [0.0, 100.0] / 66.7 [50.0, 100.0]
    """

    same: Float[np.ndarray, " Q"]
    other: Float[np.ndarray, " Q"]
    classes: Int[np.ndarray, " Q"]
    gallery: int

    def false_match_rate(self, threshold: float, samples: int = 1000) -> Estimate:
        """Return the share of queries of unknown classes that are answered, with its interval over classes."""
        return self._share(self.other, threshold, samples)

    def match_rate(self, threshold: float, samples: int = 1000) -> Estimate:
        """Return the share of queries whose own class is found, with its interval over classes."""
        return self._share(self.same, threshold, samples)

    def threshold(self, false_match_rate: float) -> float | None:
        """Return the lowest threshold with at most this false-match rate, half-way to the next similarity above it.

        Parameters
        ----------
        false_match_rate
            As a fraction, above 0 and below 1.

        Returns
        -------
        float or None
            None with fewer queries than ``1 / false_match_rate``: not a single one of them could be wrong.

        Raises
        ------
        InputError
            For a rate that is none.
        """
        if not 0 < false_match_rate < 1:
            raise InputError(f"--false-match-rate: must be above 0 and below 1, not {false_match_rate:g}")
        if false_match_rate * len(self.other) < 1 - ROUNDING:
            return None
        ascending = np.sort(self.other)
        allowed = min(math.floor(false_match_rate * len(ascending) + ROUNDING), len(ascending) - 1)
        refused = ascending[-1 - allowed]  # the best that must not match
        above = ascending[np.searchsorted(ascending, refused, side="right") :]
        return float((refused + above[0]) / 2 if len(above) else np.nextafter(refused, np.inf))

    def curve(self) -> tuple[Float[np.ndarray, " P"], Float[np.ndarray, " P"]]:
        """Return the ROC: the false-match rates that there are, ascending from 0 to 1, and the match rate at each.

        Thresholds lie half-way between the similarities of `other`, as `threshold` puts them.
        """
        levels = np.unique(self.other)
        between = (levels[1:] + levels[:-1]) / 2
        thresholds = np.concatenate([levels[:1], between, [np.nextafter(levels[-1], np.inf)]])[::-1]
        known = self.same[~np.isnan(self.same)]
        false, found = (1 - np.searchsorted(np.sort(x), thresholds) / max(1, len(x)) for x in (self.other, known))
        return false, found

    def _share(self, similarity: Float[np.ndarray, " Q"], threshold: float, samples: int) -> Estimate:
        known = ~np.isnan(similarity)
        answered = (similarity[known] >= threshold).astype(np.float64)
        _, classes = np.unique(self.classes[known], return_inverse=True)
        return estimate(float(answered.mean()), bootstrap_means(answered, classes, samples))


def calibrate_no_match(
    embeddings: Float[np.ndarray, "N D"], table: pd.DataFrame, scoring: Scoring
) -> NoMatchCalibration | None:
    """Compare the images of unseen classes with each other, to see how alike right and wrong hits are.

    Parameters
    ----------
    embeddings
        One row an image of the table.
    table
        From `data.make_table`; `role` says who is query and who gallery.
    scoring
        Says whether a query's own group is left out, which is done with the images of its own class: what is found
        must not be easier than in the scores. With those of other classes it is not: a query of an unknown class may
        well meet images of its own group.

    Returns
    -------
    NoMatchCalibration or None
        None without a query that has images both of its own and of another class to find.

    Examples
    --------
    >>> from orthoproxy.data import make_table
    >>> points = np.array([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]])
    >>> matching = calibrate_no_match(points, make_table(["1", "2", "3"], ["a", "a", "b"]), Scoring())
    >>> matching.same.round(2), matching.other.round(2)
    (array([0.8, 0.8, nan]), array([0. , 0.6, 0.6]))
    """
    everyone = build_retrieval(embeddings, table, exclude_same_group=False)
    others = build_retrieval(embeddings, table, scoring.excludes_group(table))
    same = _best_similarities(others, "positive", scoring.block_memory_mb)
    other = _best_similarities(everyone, "negative", scoring.block_memory_mb)
    compared = ~np.isnan(other)  # not where there is one class only
    if not compared.any() or np.isnan(same[compared]).all():
        return None
    classes = everyone.labels[everyone.queries]
    return NoMatchCalibration(same[compared], other[compared], classes[compared], len(everyone.gallery))


def _best_similarities(retrieval: Retrieval, which: str, memory_mb: float) -> Float[np.ndarray, " Q"]:
    """The largest similarity of each query to its positives, or negatives; NaN where it has none."""
    best = [np.empty(0)]
    for block in comparisons(retrieval, memory_mb):
        if block.similarity.shape[1]:
            best.append(block.similarity.masked_fill(~getattr(block, which), -torch.inf).amax(dim=1).numpy())
        else:
            best.append(np.full(len(block.rows), -np.inf))
    similarity = np.concatenate(best)
    return np.where(np.isinf(similarity), np.nan, similarity)
