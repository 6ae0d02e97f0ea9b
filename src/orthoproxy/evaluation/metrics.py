"""Retrieval metrics of each query, and NMI of a clustering."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.sparse import coo_array
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from orthoproxy.evaluation.neighbours import Retrieval
from orthoproxy.evaluation.ranks import leading_ranks


def query_metrics(
    retrieval: Retrieval, recall_at: Sequence[int] = (1, 2, 4, 8), memory_mb: float = 512, device: str = "cpu"
) -> dict[str, Float[np.ndarray, " Q"]]:
    """Compute every metric of every query.

    With R the number of a query's positives and their ranks as in `ranks.positive_ranks` (ties never favour the
    query): ``recall@K`` is 1 if the best positive has rank K or better; ``map@r`` is
    ``1/R * sum over positives of rank <= R of precision at that rank``; ``r_precision`` is the share of positives
    among the first R; ``mrr`` is 1 / rank of the best positive.

    Parameters
    ----------
    retrieval
        Embeddings, labels, queries, gallery.
    recall_at
        The values of K.
    memory_mb, device
        As in `ranks.leading_ranks`.

    Returns
    -------
    dict
        Metric name to one value a query, from 0 to 1; NaN for a query without any positive.

    References
    ----------
    Musgrave et al., "A Metric Learning Reality Check", ECCV 2020, for MAP@R and R-precision.

    Examples
    --------
    >>> points, labels, everyone = np.array([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]]), np.array([0, 0, 1]), np.arange(3)
    >>> query_metrics(Retrieval(points, labels, everyone, everyone), recall_at=[1])["recall@1"]
    array([ 1.,  1., nan])
    """
    blocks = [_values(torch.zeros(0, 1, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), recall_at)]
    blocks += [_values(*ranks, recall_at) for ranks in leading_ranks(retrieval, memory_mb, device)]
    return {name: torch.cat([block[name] for block in blocks]).numpy() for name in blocks[0]}


def _values(
    ranks: Int[Tensor, "b P"], counts: Int[Tensor, " b"], recall_at: Sequence[int]
) -> dict[str, Float[Tensor, " b"]]:
    r = counts.double()
    if ranks.shape[1] == 0:
        ranks = ranks.new_zeros(len(ranks), 1)
    first = ranks[:, 0].double()
    precision = torch.arange(1, ranks.shape[1] + 1) / ranks.double()  # at the rank of each positive
    within_r = (ranks > 0) & (ranks <= counts[:, None])
    values = {f"recall@{k}": (first <= k).double() for k in recall_at}
    values["map@r"] = precision.where(within_r, 0.0).sum(dim=1) / r
    values["r_precision"] = within_r.sum(dim=1) / r
    values["mrr"] = 1 / first
    return {name: value.where(counts > 0, torch.nan) for name, value in values.items()}


def cluster(embeddings: Float[np.ndarray, "N D"], clusters: int, seed: int = 0) -> Int[np.ndarray, " N"]:
    """Group embeddings by k-means.

    Parameters
    ----------
    embeddings
        Unit-length rows.
    clusters
        Number of groups; the field takes the number of classes.
    seed
        Of the starting centres.

    Returns
    -------
    numpy.ndarray
        Cluster number of each row.

    Examples
    --------
    >>> len(set(cluster(np.eye(3), clusters=3).tolist()))
    3
    """
    kmeans = KMeans(clusters, random_state=seed)  # one k-means++ start
    with warnings.catch_warnings():  # fewer distinct embeddings than clusters: a collapsed model, which the score shows
        warnings.simplefilter("ignore", ConvergenceWarning)
        return kmeans.fit_predict(embeddings).astype(np.int64)


def normalized_mutual_information(
    labels: Int[np.ndarray, " N"], clusters: Int[np.ndarray, " N"], weights: Float[np.ndarray, "W C"] | None = None
) -> Float[np.ndarray, " W"]:
    """Compare clusters with classes: ``NMI = 2 I(labels; clusters) / (H(labels) + H(clusters))``.

    Parameters
    ----------
    labels
        Class of each row, 0 to C - 1.
    clusters
        Cluster of each row.
    weights
        How often each class counts, each time as a class of its own; one row a bootstrap draw. None: once.

    Returns
    -------
    numpy.ndarray
        One value a row of `weights`, from 0 to 1; 1 where both have a single part.

    Examples
    --------
    >>> normalized_mutual_information(np.array([0, 0, 1, 1]), np.array([5, 5, 7, 7])).round(6)
    array([1.])
    """
    table: Any = coo_array((np.ones(len(labels)), (labels, clusters))).tocsr()  # C K: how many of a class in a cluster
    weights = np.ones((1, table.shape[0])) if weights is None else weights
    size = table.sum(axis=1)  # C
    total, in_cluster = weights @ size, weights @ table  # W, W K

    def entropy_sum(counts: np.ndarray) -> np.ndarray:  # sum of n log n, with 0 log 0 = 0
        return counts * np.log(np.maximum(counts, 1))

    of_labels = np.log(total) - weights @ entropy_sum(size) / total
    of_clusters = np.log(total) - entropy_sum(in_cluster).sum(axis=1) / total
    cells = table.copy()
    cells.data = entropy_sum(cells.data)
    joint = np.log(total) - weights @ cells.sum(axis=1) / total
    both = of_labels + of_clusters
    return np.where(both > 1e-12, 2 * (both - joint) / np.maximum(both, 1e-12), 1.0)
