"""Retrieval metrics of each query."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from orthoproxy.evaluation.retrieval import Ranking, Retrieval, rank_positives


def query_metrics(
    retrieval: Retrieval,
    recall_at: Sequence[int] = (1, 2, 4, 8),
    block_memory_mb: float = 512,
    device: str = "cpu",
    average_precision: bool = False,
) -> dict[str, Float[np.ndarray, " Q"]]:
    r"""Compute Recall@K, MAP@R, R-precision and the reciprocal rank of every query.

    With R the number of a query's positives, r_1 <= r_2 <= ... their ranks, ties against the query (`rank_positives`):

    - ``recall@K`` = 1 if r_1 <= K, else 0
    - ``map@r`` = 1/R * sum over j with r_j <= R of j / r_j
    - ``r_precision`` = number of r_j <= R, divided by R
    - ``mrr`` = 1 / r_1
    - ``category_recall@1`` = 1 if an image of the query's category is more similar than all others, else 0; only with
      categories
    - with `average_precision`, which takes longer: ``map`` = 1/R * sum over all j of j / r_j, and ``minp`` = R / r_R

    Parameters
    ----------
    retrieval
        Embeddings, labels, queries, gallery, and possibly categories.
    recall_at
        The values of K.
    block_memory_mb, device
        As in `rank_positives`.
    average_precision
        Also compute ``map`` and ``minp``, for which all positives are ranked.

    Returns
    -------
    dict
        Metric name to one value per query, from 0 to 1; NaN for a query without a positive.

    References
    ----------
    Musgrave et al., "A Metric Learning Reality Check", ECCV 2020, for MAP@R and R-precision; Zheng et al., "Scalable
    Person Re-identification: A Benchmark", ICCV 2015, for mAP; Ye et al., "Deep Learning for Person Re-identification:
    A Survey and Outlook", TPAMI 2021, for mINP.

    Examples
    --------
    >>> points, labels, everyone = np.array([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]]), np.array([0, 0, 1]), np.arange(3)
    >>> query_metrics(Retrieval(points, labels, everyone, everyone), recall_at=[1])["recall@1"]
    array([ 1.,  1., nan])
    """
    rankings = rank_positives(retrieval, block_memory_mb, device, full=average_precision)
    blocks = [_metrics(ranking, recall_at, average_precision) for ranking in rankings]
    return {name: torch.cat([block[name] for block in blocks]).numpy() for name in blocks[0]}


def _metrics(ranking: Ranking, recall_at: Sequence[int], average_precision: bool) -> dict[str, Float[Tensor, " b"]]:
    ranks, positives = ranking.ranks, ranking.positives
    first = ranks[:, 0].double()
    precision = torch.arange(1, ranks.shape[1] + 1) / ranks.double()  # at the rank of each positive
    within_r = (ranks > 0) & (ranks <= positives[:, None])
    values = {f"recall@{k}": (first <= k).double() for k in recall_at}
    values["map@r"] = precision.where(within_r, 0.0).sum(dim=1) / positives
    values["r_precision"] = within_r.sum(dim=1) / positives.double()
    values["mrr"] = 1 / first
    if ranking.category_first is not None:
        values["category_recall@1"] = ranking.category_first.double()
    if average_precision:
        values["map"] = precision.where(ranks > 0, 0.0).sum(dim=1) / positives
        values["minp"] = positives / ranks.amax(dim=1).double()
    return {name: value.where(positives > 0, torch.nan) for name, value in values.items()}
