"""Example queries with their nearest neighbors: drawn at random, the worst, the best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from orthoproxy.evaluation import Retrieval, nearest_neighbors
from orthoproxy.evaluation.retrieval import rank_positives
from orthoproxy.reports.results import RunResults

NUM_RANDOM, NUM_EXTREME, NUM_NEIGHBORS = 5, 6, 6  # random queries; worst, and best, queries; neighbors of each


@dataclass(frozen=True)
class Neighbor:
    """A row of the table that a query retrieved, and whether it is of the query's class."""

    row: int
    correct: bool


@dataclass(frozen=True)
class Example:
    """A query, its nearest neighbors, and the rank of its best positive (0 if it has none)."""

    row: int
    neighbors: list[Neighbor]
    rank: int


@dataclass(frozen=True)
class QueryRanks:
    """Rank of each query's best positive, and by how much it leads."""

    rows: Int[np.ndarray, " Q"]
    rank: Int[np.ndarray, " Q"]  # ties count against it; 0 without a positive
    margin: Float[np.ndarray, " Q"]  # cosine of the best positive minus that of the nearest negative


def choose_examples(results: RunResults) -> dict[str, Any] | None:
    """Choose the queries that the page shows, as its template names them; None if no query has a positive."""
    if results.evaluation is None:
        return None
    retrieval, table = results.retrieval(results.embeddings), results.table
    ranks = rank_queries(retrieval)
    scored = ranks.rank[ranks.rank > 0]
    if not len(scored):
        return None
    rows = choose_random(ranks, table, NUM_RANDOM)
    return {
        "random": find_neighbors(retrieval, rows),
        "baseline_random": find_neighbors(replace(retrieval, embeddings=results.baseline_embeddings), rows),
        "worst": find_neighbors(retrieval, choose_worst(ranks, table, NUM_EXTREME)),
        "best": find_neighbors(retrieval, choose_best(ranks, table, NUM_EXTREME)),
        "recall_at_1": float((scored == 1).mean()),
        "sampled": len(scored),
    }


def rank_queries(retrieval: Retrieval, max_queries: int = 5000, seed: int = 0) -> QueryRanks:
    """Compute rank and margin of all queries, or of a random sample of `max_queries`."""
    rows = retrieval.queries
    if len(rows) > max_queries:
        rows = np.sort(np.random.default_rng(seed).choice(rows, size=max_queries, replace=False))
    rankings = rank_positives(replace(retrieval, queries=rows))
    blocks = [(x.ranks[:, 0].numpy(), (x.best_positive - x.best_negative).numpy()) for x in rankings]
    ranks, margins = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
    return QueryRanks(rows, ranks, margins)


def choose_worst(ranks: QueryRanks, table: pd.DataFrame, k: int) -> list[int]:
    """Return the rows of up to k failures, the largest rank first, at most one per class."""
    order = np.lexsort((ranks.margin, -ranks.rank))
    return _one_per_class(ranks.rows[order[ranks.rank[order] > 1]], table, k)


def choose_best(ranks: QueryRanks, table: pd.DataFrame, k: int) -> list[int]:
    """Return the rows of up to k successes, the largest margin first, at most one per class."""
    order = np.argsort(-ranks.margin, kind="stable")
    return _one_per_class(ranks.rows[order[ranks.rank[order] == 1]], table, k)


def choose_random(ranks: QueryRanks, table: pd.DataFrame, k: int, seed: int = 0) -> list[int]:
    """Return the rows of up to k random queries that have a positive, at most one per class."""
    return _one_per_class(np.random.default_rng(seed).permutation(ranks.rows[ranks.rank > 0]), table, k)


def find_neighbors(retrieval: Retrieval, rows: Sequence[int], k: int = NUM_NEIGHBORS) -> list[Example]:
    """Return the k nearest neighbors of each query in `rows`."""
    retrieval = replace(retrieval, queries=np.array(rows, dtype=np.int64))
    found, _ = nearest_neighbors(retrieval, k)
    ranks, labels = rank_queries(retrieval, max_queries=len(rows)).rank, retrieval.labels
    return [
        Example(row, [Neighbor(other, bool(labels[other] == labels[row])) for other in others if other >= 0], rank)
        for row, others, rank in zip(rows, found.tolist(), ranks.tolist(), strict=True)
    ]


def _one_per_class(rows: Int[np.ndarray, " P"], table: pd.DataFrame, k: int) -> list[int]:
    repeated = table["label"].iloc[rows].duplicated().to_numpy()
    return rows[~repeated][:k].tolist()
