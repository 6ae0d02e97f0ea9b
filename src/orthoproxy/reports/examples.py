"""Example queries with their nearest neighbors: drawn at random, the worst, the best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from orthoproxy.evaluation import Retrieval, nearest_neighbors
from orthoproxy.evaluation.retrieval import rank_positives
from orthoproxy.reports.results import RunResults

NUM_RANDOM, NUM_EXTREME, NUM_NEIGHBORS = 5, 6, 6  # random queries; worst, and best, queries; neighbors of each


@dataclass(frozen=True)
class Example:
    """A row of the table that is a query, and the rows it retrieved, with whether each is of the query's class."""

    row: int
    neighbors: list[tuple[int, bool]]


def choose_examples(results: RunResults) -> dict[str, Any] | None:
    """Choose example queries, as the report's template names them; None without test classes or any positive."""
    if results.evaluation is None:
        return None
    retrieval = results.retrieval(results.embeddings)
    queries = rank_queries(retrieval)
    scored = queries["rank"][queries["rank"] > 0]
    if scored.empty:
        return None
    rows = choose_rows(queries, NUM_EXTREME)
    rows["random"] = rows["random"][:NUM_RANDOM]
    baseline = replace(retrieval, embeddings=results.baseline_embeddings)
    return {
        **{kind: find_neighbors(retrieval, of_kind) for kind, of_kind in rows.items()},
        "baseline_random": find_neighbors(baseline, rows["random"]),
        "ranks": queries["rank"].to_dict(),
        "recall_at_1": float((scored == 1).mean()),
        "sampled": len(scored),
    }


def rank_queries(retrieval: Retrieval, max_queries: int = 5000, seed: int = 0) -> pd.DataFrame:
    """Return the `label`, the `rank` of the best positive (0: none) and its `margin` in cosine, by row of a query."""
    rows = retrieval.queries
    if len(rows) > max_queries:
        rows = np.sort(np.random.default_rng(seed).choice(rows, size=max_queries, replace=False))
    rankings = rank_positives(replace(retrieval, queries=rows))
    blocks = [(x.ranks[:, 0].numpy(), (x.best_positive - x.best_negative).numpy()) for x in rankings]
    ranks, margins = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
    return pd.DataFrame({"label": retrieval.labels[rows], "rank": ranks, "margin": margins}, index=rows)


def choose_rows(queries: pd.DataFrame, k: int, seed: int = 0) -> dict[str, list[int]]:
    """Return the rows of up to k queries of each kind, all with a positive, at most one per class."""
    ranks = queries["rank"]
    shuffled = np.random.default_rng(seed).permutation(queries.index[ranks > 0])
    ordered = {
        "random": queries.loc[shuffled],
        "worst": queries[ranks > 1].sort_values(["rank", "margin"], ascending=[False, True]),
        "best": queries[ranks == 1].sort_values("margin", ascending=False, kind="stable"),
    }
    return {kind: table.drop_duplicates("label").index[:k].tolist() for kind, table in ordered.items()}


def find_neighbors(retrieval: Retrieval, rows: Sequence[int], k: int = NUM_NEIGHBORS) -> list[Example]:
    """Return the k nearest neighbors of each query in `rows`."""
    retrieval = replace(retrieval, queries=np.array(rows, dtype=np.int64))
    found, labels = nearest_neighbors(retrieval, k)[0].tolist(), retrieval.labels
    return [
        Example(row, [(other, bool(labels[other] == labels[row])) for other in others if other >= 0])
        for row, others in zip(rows, found, strict=True)
    ]
