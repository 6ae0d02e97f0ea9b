"""Queries worth looking at, and their nearest neighbours: drawn at random, the best, the worst."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int

from orthoproxy.evaluation import Retrieval, comparisons, nearest


@dataclass(frozen=True)
class Neighbour:
    """A row of the table that a query found, whether it is of the query's class, and their cosine."""

    row: int
    right: bool
    cosine: float


@dataclass(frozen=True)
class Example:
    """A query's row, its nearest neighbours, nearest first, and the rank of its best positive (0: it has none)."""

    row: int
    neighbours: list[Neighbour]
    rank: int


@dataclass(frozen=True)
class Outcome:
    """What became of each query.

    `rank` is that of its best positive, ties against the query, and 0 where it has none. `margin` is the cosine of
    the best positive minus that of the nearest negative.
    """

    rows: Int[np.ndarray, " Q"]
    rank: Int[np.ndarray, " Q"]
    margin: Float[np.ndarray, " Q"]


def outcome(retrieval: Retrieval, most: int = 5000, seed: int = 0) -> Outcome:
    """Find the rank and the margin of each query, or of a random sample of queries.

    Parameters
    ----------
    retrieval
        What is searched.
    most
        Where there are more queries than this, draw so many.
    seed
        Of the draw.

    Returns
    -------
    Outcome
        In the order of the rows.

    Examples
    --------
    >>> points, everyone = np.array([[1.0, 0.0], [0.8, 0.6], [0.6, 0.8]]), np.arange(3)
    >>> found = outcome(Retrieval(points, np.array([0, 0, 1]), everyone, everyone))
    >>> found.rank, found.margin.round(2)
    (array([1, 2, 0]), array([ 0.2 , -0.16,  -inf]))
    """
    rows = retrieval.queries
    if len(rows) > most:
        rows = np.sort(np.random.default_rng(seed).choice(rows, size=most, replace=False))
    blocks = comparisons(replace(retrieval, queries=rows)) if len(retrieval.gallery) else ()
    ranks, margins = [np.empty(0, dtype=np.int64)], [np.empty(0)]
    for block in blocks:
        best = block.similarity.masked_fill(~block.positive, -torch.inf).amax(dim=1)
        rivals = block.similarity.masked_fill(~block.negative, -torch.inf)
        rank = 1 + (rivals >= best[:, None]).sum(dim=1)
        ranks.append((rank * block.positive.any(dim=1)).numpy())
        margins.append((best - rivals.amax(dim=1)).numpy())
    return Outcome(rows if len(retrieval.gallery) else rows[:0], np.concatenate(ranks), np.concatenate(margins))


def worst_queries(found: Outcome, table: pd.DataFrame, k: int) -> list[int]:
    """Choose failures: the best positive has the largest rank; at most one query a class.

    Parameters
    ----------
    found
        From `outcome`.
    table
        For the classes.
    k
        How many, at most; queries with a right nearest neighbour are no failures.

    Returns
    -------
    list of int
        Row numbers, the worst first.

    Examples
    --------
    >>> found = Outcome(np.arange(3), rank=np.array([1, 2, 9]), margin=np.array([0.1, -0.1, -0.3]))
    >>> worst_queries(found, pd.DataFrame({"label": ["a", "b", "c"]}), k=2)
    [2, 1]
    """
    order = np.lexsort((found.margin, -found.rank))
    return _one_a_class(found.rows[order[found.rank[order] > 1]], table, k)


def best_queries(found: Outcome, table: pd.DataFrame, k: int) -> list[int]:
    """Choose successes: the nearest neighbour is right with the largest margin; at most one query a class.

    Parameters
    ----------
    found, table, k
        As in `worst_queries`.

    Returns
    -------
    list of int
        Row numbers, the best first.

    Examples
    --------
    >>> found = Outcome(np.arange(3), rank=np.array([1, 1, 9]), margin=np.array([0.1, 0.2, -0.3]))
    >>> best_queries(found, pd.DataFrame({"label": ["a", "b", "c"]}), k=2)
    [1, 0]
    """
    order = np.argsort(-found.margin, kind="stable")
    return _one_a_class(found.rows[order[found.rank[order] == 1]], table, k)


def random_queries(found: Outcome, table: pd.DataFrame, k: int, seed: int = 0) -> list[int]:
    """Draw queries that have a positive; at most one a class.

    Parameters
    ----------
    found, table, k
        As in `worst_queries`.
    seed
        Of the draw.

    Returns
    -------
    list of int
        Row numbers.

    Examples
    --------
    >>> found = Outcome(np.arange(3), rank=np.array([1, 0, 9]), margin=np.array([0.1, 0.2, -0.3]))
    >>> sorted(random_queries(found, pd.DataFrame({"label": ["a", "b", "c"]}), k=5))
    [0, 2]
    """
    shuffled = np.random.default_rng(seed).permutation(found.rows[found.rank > 0])
    return _one_a_class(shuffled, table, k)


def examples(retrieval: Retrieval, rows: list[int], k: int = 6) -> list[Example]:
    """Look up the nearest neighbours of chosen queries.

    Parameters
    ----------
    retrieval
        What is searched.
    rows
        Row numbers of the queries.
    k
        Neighbours of each.

    Returns
    -------
    list of Example
        In the order of `rows`.

    Examples
    --------
    >>> points, everyone = np.array([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]]), np.arange(3)
    >>> examples(Retrieval(points, np.array([0, 0, 1]), everyone, everyone), rows=[0], k=1)
    [Example(row=0, neighbours=[Neighbour(row=1, right=True, cosine=0.8)], rank=1)]
    """
    if not rows:
        return []
    asked = replace(retrieval, queries=np.array(rows))
    found, cosines = nearest(asked, k)
    ranks, labels = outcome(asked, most=len(rows)).rank, retrieval.labels
    return [
        Example(
            row,
            [
                Neighbour(int(other), bool(labels[other] == labels[row]), round(float(cosine), 4))
                for other, cosine in zip(found[i], cosines[i], strict=True)
                if other >= 0
            ],
            int(ranks[i]),
        )
        for i, row in enumerate(rows)
    ]


def _one_a_class(rows: Int[np.ndarray, " P"], table: pd.DataFrame, k: int) -> list[int]:
    labels = table["label"].tolist()
    chosen: dict[str, int] = {}
    for row in rows.tolist():
        if len(chosen) == k:
            break
        chosen.setdefault(labels[row], row)
    return list(chosen.values())
