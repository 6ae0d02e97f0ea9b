"""Score the labels that a vote of the gallery gives to queries of known classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from jaxtyping import Float

from orthoproxy.data.table import class_numbers
from orthoproxy.evaluation.bootstrap import Estimate, bootstrap_means, estimate, mean_estimate
from orthoproxy.evaluation.evaluate import Evaluation, Scoring, build_retrieval, for_all_queries
from orthoproxy.evaluation.no_match import best_similarities
from orthoproxy.evaluation.retrieval import Retrieval, nearest_neighbors
from orthoproxy.evaluation.voting import NEIGHBORS, VoteScores, vote

MAX_CONFUSIONS = 10


def add_vote(
    evaluation: Evaluation,
    embeddings: Sequence[Float[np.ndarray, "N _"]],
    table: pd.DataFrame,
    thresholds: Sequence[float | None],
    scoring: Scoring,
) -> Evaluation:
    """Add the scores of a vote to an evaluation of known classes; embeddings and thresholds of model and baseline."""
    threshold = thresholds[0]
    retrieval = build_retrieval(embeddings[0], table, scoring.rule(table), scoring.exclude_duplicates)
    same, other = best_similarities(retrieval, scoring)
    labels = retrieval.labels[retrieval.queries]
    known, unseen = ~np.isnan(same), ~np.isin(labels, retrieval.labels[retrieval.gallery])
    retrieval, truth = replace(retrieval, queries=retrieval.queries[known]), labels[known]
    answers, drawn = [], []
    for x, limit in zip(embeddings, thresholds, strict=True):
        found = _answers(replace(retrieval, embeddings=x), limit, scoring)
        values = np.stack([found["any"] == truth, found["answer"] >= 0, found["answer"] == truth]).astype(np.float64)
        rows = np.column_stack([values.mean(axis=1), bootstrap_means(values, truth, scoring.bootstrap_samples)])
        with np.errstate(invalid="ignore"):
            rows[2] /= rows[1]  # right answers among the answers; NaN without any
        answers.append(found["answer"])
        drawn.append(rows)  # of the data in the first column, of bootstrap samples in the others
    names = ["accuracy"] if threshold is None else ["accuracy", "coverage", "precision"]
    if np.isnan(drawn)[:, 2, 0].any():
        names = names[:2]

    def estimates(rows: Float[np.ndarray, "3 W"]) -> dict[str, Estimate]:
        found = zip(names, rows, strict=False)
        return {name: estimate(row[0], row[1:][~np.isnan(row[1:])], scoring.confidence) for name, row in found}

    def false_known(queries: np.ndarray) -> Estimate | None:
        if threshold is None or not queries.any():
            return None
        answered = (other[queries] >= threshold).astype(np.float64)
        return mean_estimate(answered, labels[queries], scoring.bootstrap_samples, scoring.confidence)

    classes = class_numbers(table)[1]
    answered = zip(truth, answers[0], strict=True)
    wrong = Counter((classes[label], classes[int(x)]) for label, x in answered if x not in (-1, label))
    confusions = [(*pair, n) for pair, n in sorted(wrong.items(), key=lambda x: (-x[1], x[0]))[:MAX_CONFUSIONS]]
    scores = zip(("model", "baseline", "difference"), (*drawn, drawn[0] - drawn[1]), strict=True)
    return replace(
        evaluation,
        **{name: getattr(evaluation, name) | estimates(rows) for name, rows in scores},
        known_classes=True,
        vote=VoteScores(NEIGHBORS, threshold, false_known(~unseen), false_known(unseen), confusions),
    )


def _answers(retrieval: Retrieval, threshold: float | None, scoring: Scoring) -> dict[str, Float[np.ndarray, " Q"]]:
    """Number of the label that wins the vote, with the threshold and without; -1 for "unknown"."""
    limits = {"answer": -np.inf if threshold is None else threshold, "any": -np.inf}

    def compute(part: Retrieval) -> dict[str, np.ndarray]:
        rows, similarity = nearest_neighbors(part, NEIGHBORS, scoring.block_memory_mb, scoring.device)
        labels = np.where(rows < 0, -1, part.labels[rows])
        winners = {name: vote(similarity, labels, limit)[0] for name, limit in limits.items()}
        return {name: np.where(x < 0, -1.0, labels[np.arange(len(x)), x]) for name, x in winners.items()}

    return for_all_queries(compute, retrieval, scoring.shared)
