"""Scores of each class, so that models can be compared class by class."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from orthoproxy.evaluation.evaluate import Scoring, require_scorable, retrieval_of
from orthoproxy.evaluation.metrics import query_metrics


@dataclass(frozen=True)
class ClassScores:
    """Means of each class's queries; see `class_scores`.

    Parameters
    ----------
    classes
        Names of the C classes that have a scored query, sorted.
    queries
        How many each has.
    values
        Metric name to C means, as fractions.

    Examples
    --------
    >>> scores = ClassScores(["a", "b"], np.array([3, 1]), {"recall@1": np.array([1.0, 0.0])})
    >>> scores.mean("recall@1")
    0.75
    """

    classes: list[str]
    queries: Int[np.ndarray, " C"]
    values: dict[str, Float[np.ndarray, " C"]]

    def mean(self, metric: str) -> float:
        """Average over the queries, as `mean_scores` does.

        Parameters
        ----------
        metric
            Its name.
        """
        return float(np.average(self.values[metric], weights=self.queries))


def class_scores(embeddings: Float[np.ndarray, "N D"], table: pd.DataFrame, scoring: Scoring) -> ClassScores:
    """Score embeddings and average each class's queries.

    Parameters
    ----------
    embeddings
        One row an image of the table.
    table
        Labels, roles and groups of the rows.
    scoring
        As in `score`; NMI, which is of no single class, is left out, and nothing is drawn.

    Returns
    -------
    ClassScores
        Of classes with a query that has a positive in its gallery.

    Raises
    ------
    InputError
        If there is no such class.

    Examples
    --------
    >>> from orthoproxy.data import make_table
    >>> table = make_table(["1", "2", "3", "4", "5"], ["a", "a", "b", "b", "c"])
    >>> points = np.array([[1, 0], [1, 0.1], [0, 1], [1, 0.3], [0, -1]])
    >>> scores = class_scores(points, table, Scoring(recall_at=(1,)))
    >>> scores.classes, scores.queries.tolist(), scores.values["recall@1"].tolist()
    (['a', 'b'], [2, 2], [1.0, 0.5])
    """
    retrieval = retrieval_of(embeddings, table, scoring.excludes_group(table))
    metrics = query_metrics(retrieval, scoring.recall_at, scoring.memory_mb, scoring.device)
    scored = ~np.isnan(metrics["mrr"]) if metrics else np.zeros(0, dtype=bool)
    if not scored.any():
        require_scorable(table, scoring, "the data")
    labels = table["label"].to_numpy()[retrieval.queries][scored]
    classes, number, queries = np.unique(labels.astype(str), return_inverse=True, return_counts=True)
    sums = {name: np.bincount(number, value[scored], len(classes)) for name, value in metrics.items()}
    return ClassScores(classes.tolist(), queries, {name: total / queries for name, total in sums.items()})
