"""Query expansion: search again by the query and its nearest neighbors."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from jaxtyping import Float, Int

from orthoproxy.evaluation.retrieval import Retrieval, nearest_neighbors, unit_rows

ALPHA = 3.0  # as published


def expand_queries(
    retrieval: Retrieval, neighbors: int, alpha: float = ALPHA, block_memory_mb: float = 512, device: str = "cpu"
) -> Retrieval:
    r"""Add to each query its nearest neighbors among what it may find: never itself or what is excluded.

    A query :math:`q` becomes the normalized :math:`q + \sum_i \max(s_i, 0)^\alpha x_i`, with :math:`s_i` its cosine
    with the neighbor :math:`x_i`.

    Parameters
    ----------
    retrieval
        What to search.
    neighbors
        Number of neighbors that are added to a query.
    alpha
        The larger, the less do dissimilar neighbors weigh; with 0, all weigh 1.
    block_memory_mb, device
        As in `nearest_neighbors`.

    References
    ----------
    Radenovic et al., "Fine-tuning CNN Image Retrieval with No Human Annotation", TPAMI 2019.

    Examples
    --------
    >>> points = np.array([[1.0, 0.0], [0.8, 0.6], [0.6, 0.8]])
    >>> retrieval = Retrieval(points, np.array([0, 1, 1]), queries=np.array([0]), gallery=np.arange(3))
    >>> expand_queries(retrieval, neighbors=1).query_embeddings.round(2)
    array([[0.98, 0.21]])
    """
    rows, similarity = nearest_neighbors(retrieval, neighbors, block_memory_mb, device)
    units = unit_rows(retrieval.embeddings)
    expanded = add_neighbors(units[retrieval.queries], units, rows, similarity, alpha)
    return replace(retrieval, query_embeddings=expanded)


def add_neighbors(
    queries: Float[np.ndarray, "Q D"],
    gallery: Float[np.ndarray, "G D"],
    rows: Int[np.ndarray, "Q n"],
    similarity: Float[np.ndarray, "Q n"],
    alpha: float = ALPHA,
) -> Float[np.ndarray, "Q D"]:
    """Add rows of the gallery to queries, of unit length all, weighted by similarity, which is -inf for none."""
    total = queries.astype(np.float64)
    weights = np.where(similarity > -np.inf, np.maximum(similarity, 0) ** alpha, 0)
    for place in range(rows.shape[1]):
        total += weights[:, [place]] * gallery[rows[:, place]]
    return unit_rows(total)
