"""How far images of one class lie apart, and how far those of two classes: drawn pairs, never all of them."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int

from orthoproxy.evaluation import Retrieval
from orthoproxy.reports.geometry import row_cosines


def pair_distances(
    retrieval: Retrieval, pairs: int = 50_000, seed: int = 0
) -> tuple[Float[np.ndarray, " P"], Float[np.ndarray, " M"]]:
    """Draw pairs of a query and a gallery image, and compute their distance ``1 - cosine``.

    Parameters
    ----------
    retrieval
        What is searched; an image with itself is no pair, nor is what its group rules out.
    pairs
        How many pairs of each kind to draw, with replacement; those that turn out not to be allowed are dropped.
    seed
        Of the draw.

    Returns
    -------
    positives
        Distances within a class, from 0 to 2. Every query is as likely as any other.
    negatives
        Distances between two classes.

    Examples
    --------
    >>> everyone = np.arange(3)
    >>> points = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    >>> positives, negatives = pair_distances(Retrieval(points, np.array([0, 0, 1]), everyone, everyone), pairs=9)
    >>> set(positives.tolist()), set(negatives.tolist())
    ({0.0}, {1.0})
    """
    if not len(retrieval.queries) or not len(retrieval.gallery):
        return np.empty(0), np.empty(0)
    generator = np.random.default_rng(seed)
    query = generator.choice(retrieval.queries, size=pairs)
    candidates = {True: _of_the_same_class(retrieval, query, generator), False: None}
    candidates[False] = (query, generator.choice(retrieval.gallery, size=pairs))
    distances = []
    for positive, (first, second) in candidates.items():
        kept = _allowed(retrieval, first, second, positive)
        x = retrieval.embeddings
        distances.append((1 - row_cosines(x, first[kept], x, second[kept])).clip(0, 2))
    return distances[0], distances[1]


def separation(positives: Float[np.ndarray, " P"], negatives: Float[np.ndarray, " M"]) -> float:
    """Compute how often a positive pair is closer than a negative one: the area under the ROC curve.

    Parameters
    ----------
    positives, negatives
        Distances, from `pair_distances`.

    Returns
    -------
    float
        From 0 to 1; 0.5 is chance, equal distances count half. NaN if there is no pair of a kind.

    Examples
    --------
    >>> separation(np.array([0.1, 0.4]), np.array([0.2, 0.5]))
    0.75
    """
    if not len(positives) or not len(negatives):
        return float("nan")
    ordered = np.sort(negatives)
    not_further = np.searchsorted(ordered, positives, side="left") + np.searchsorted(ordered, positives, side="right")
    return float(1 - not_further.mean() / (2 * len(ordered)))


def _of_the_same_class(
    retrieval: Retrieval, query: Int[np.ndarray, " P"], generator: np.random.Generator
) -> tuple[Int[np.ndarray, " P"], Int[np.ndarray, " P"]]:
    """Draw a gallery image of each query's class, where there is one."""
    gallery = retrieval.gallery[np.argsort(retrieval.labels[retrieval.gallery], kind="stable")]
    labels = retrieval.labels[gallery]
    start = np.searchsorted(labels, retrieval.labels[query], side="left")
    size = np.searchsorted(labels, retrieval.labels[query], side="right") - start
    query, start, size = query[size > 0], start[size > 0], size[size > 0]
    return query, gallery[start + generator.integers(size)]


def _allowed(
    retrieval: Retrieval, first: Int[np.ndarray, " P"], second: Int[np.ndarray, " P"], positive: bool
) -> Bool[np.ndarray, " P"]:
    kept = (first != second) & ((retrieval.labels[first] == retrieval.labels[second]) == positive)
    if retrieval.groups is not None:
        own = retrieval.groups[first]
        kept &= (own != retrieval.groups[second]) | (own < 0)
    return kept
