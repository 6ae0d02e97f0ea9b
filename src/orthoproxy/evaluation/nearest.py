"""Lists of nearest neighbours: exact, at the speed of single precision."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float, Int

from orthoproxy.evaluation.gallery import Gallery, largest
from orthoproxy.evaluation.neighbours import Retrieval, comparisons

SPARE = 16  # neighbours looked at beyond those asked for, so that the last one seldom decides anything


def nearest(
    retrieval: Retrieval, k: int, memory_mb: float = 512, device: str = "cpu"
) -> tuple[Int[np.ndarray, "Q k"], Float[np.ndarray, "Q k"]]:
    """List each query's nearest neighbours, most similar first, ties by row number.

    Candidates are found in float32, and compared in float64. Where float32 could have missed one, the query is compared
    with the whole gallery in float64.

    Parameters
    ----------
    retrieval
        What to search; see `Retrieval`.
    k
        Length of the lists.
    memory_mb
        Bound on the memory of a block of queries in MiB; a block has at least one query.
    device
        Where similarities are computed in float32.

    Returns
    -------
    rows
        Row numbers of the neighbours; -1 where a query has fewer than `k`.
    similarity
        Their cosines in float64; -inf there. Both have shape (Q, min(k, G)).

    Examples
    --------
    >>> points = np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
    >>> rows, _ = nearest(Retrieval(points, np.zeros(3, dtype=int), np.array([0]), np.arange(3)), k=2)
    >>> rows
    array([[1, 2]])
    """
    retrieval = replace(retrieval, gallery=np.sort(retrieval.gallery))
    k = min(k, len(retrieval.gallery))
    gallery = Gallery(retrieval, memory_mb, device)
    rows = np.full((len(retrieval.queries), k), -1)
    similarity = np.full(rows.shape, -np.inf)
    for start in range(0, len(rows) if k else 0, gallery.block):
        part = slice(start, start + gallery.block)
        rows[part], similarity[part], certain = _in_single_precision(gallery, retrieval.queries[part], k)
        unclear = start + np.flatnonzero(~certain)
        for place, found in zip(unclear, _in_double_precision(retrieval, unclear, k, memory_mb), strict=True):
            rows[place], similarity[place] = found
    return rows, similarity


def _in_single_precision(gallery: Gallery, queries: Int[np.ndarray, " b"], k: int) -> tuple[np.ndarray, ...]:
    """Return rows and similarities as `nearest`, and whether they are certain."""
    single = gallery.compare(queries)
    values, columns = largest(single, min(k + SPARE, single.shape[1]))
    query = torch.arange(len(queries), device=values.device).repeat_interleave(values.shape[1])
    exact = gallery.exact(queries, query, columns.flatten()).view_as(values)
    exact = exact.masked_fill(values == -torch.inf, -torch.inf).cpu().numpy()
    columns, edge = columns.cpu().numpy(), values[:, -1].double().cpu().numpy()
    order = np.lexsort((columns, -exact))[:, :k]  # columns ascend with rows
    exact, columns = np.take_along_axis(exact, order, axis=1), np.take_along_axis(columns, order, axis=1)
    all_looked_at = np.isinf(edge) | (values.shape[1] == single.shape[1])
    certain = all_looked_at | (edge + gallery.error < exact[:, -1])
    return np.where(np.isinf(exact), -1, gallery.retrieval.gallery[columns]), exact, certain


def _in_double_precision(
    retrieval: Retrieval, places: Int[np.ndarray, " n"], k: int, memory_mb: float
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for block in comparisons(replace(retrieval, queries=retrieval.queries[places]), memory_mb):
        scores = block.similarity.masked_fill(~(block.positive | block.negative), -torch.inf)
        values, columns = scores.sort(dim=1, descending=True, stable=True)
        for similarity, column in zip(values[:, :k].numpy(), columns[:, :k].numpy(), strict=True):
            yield np.where(np.isinf(similarity), -1, retrieval.gallery[column]), similarity
