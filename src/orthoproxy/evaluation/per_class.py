"""Scores of each class, to compare models class by class."""

from __future__ import annotations

import numpy as np
import pandas as pd
from jaxtyping import Float

from orthoproxy.evaluation.evaluate import Lever, Scoring, build_retrieval, score_queries


def class_scores(
    embeddings: Float[np.ndarray, "N D"], table: pd.DataFrame, scoring: Scoring, lever: Lever | None = None
) -> pd.DataFrame:
    """Score embeddings and average the queries of each class.

    Parameters
    ----------
    embeddings, table, scoring
        As in `score`; nothing is resampled.
    lever
        Changes the retrieval, such as `rerank`.

    Returns
    -------
    pandas.DataFrame
        A row per class that has a query with a positive in its gallery: the number of such `queries`, and their mean
        of each metric.

    Raises
    ------
    InputError
        If there is no such class, or the gallery has one class only.

    Examples
    --------
    >>> from orthoproxy.data import make_table
    >>> table = make_table(["1", "2", "3", "4", "5"], ["a", "a", "b", "b", "c"])
    >>> points = np.array([[1, 0], [1, 0.1], [0, 1], [1, 0.3], [0, -1]])
    >>> scores = class_scores(points, table, Scoring(recall_at=(1,)))
    >>> scores.index.tolist(), scores["queries"].tolist(), scores["recall@1"].tolist()
    (['a', 'b'], [2, 2], [1.0, 0.5])
    """
    retrieval = build_retrieval(embeddings, table, scoring.rule(table), scoring.exclude_duplicates)
    metrics = score_queries(retrieval, table, scoring, lever)
    scored = ~np.isnan(metrics["mrr"])
    labels = table["label"].to_numpy()[retrieval.queries][scored]
    classes, number, queries = np.unique(labels.astype(str), return_inverse=True, return_counts=True)
    means = {name: np.bincount(number, value[scored]) / queries for name, value in metrics.items()}
    return pd.DataFrame({"queries": queries, **means}, index=classes)
