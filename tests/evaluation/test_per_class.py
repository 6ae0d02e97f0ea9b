"""Scores of each class, against a plain reading of the definition and against the mean over all queries."""

from typing import get_args

import numpy as np
import pytest

from orthoproxy.data import make_table
from orthoproxy.evaluation import Scoring
from orthoproxy.evaluation.evaluate import mean_scores
from orthoproxy.evaluation.per_class import class_scores
from orthoproxy.evaluation.retrieval import Exclude


def table_and_points(groups: bool = False):
    generator = np.random.default_rng(0)
    labels = generator.choice(["d", "a", "c", "b"], size=40).tolist()
    table = make_table(
        [str(number) for number in range(41)],
        [*labels, "alone"],
        group=generator.choice(["", "x", "y"], size=41).tolist() if groups else "",
        role=generator.choice(["query", "gallery", "both"], size=41).tolist(),
    )
    return table, generator.normal(size=(41, 3)).astype(np.float32)


@pytest.mark.parametrize("exclude", get_args(Exclude))
def test_their_mean_over_queries_is_the_score(exclude):
    table, points = table_and_points(groups=True)
    scoring = Scoring(recall_at=(1, 3), map=True, exclude=exclude)
    scores, means = class_scores(points, table, scoring), mean_scores(points, table, scoring)
    assert set(scores.values) == set(means)
    for name, mean in means.items():
        assert np.average(scores.values[name], weights=scores.queries) == pytest.approx(mean, abs=1e-12)


def test_each_is_the_mean_of_its_own_queries():
    table, points = table_and_points()
    scores = class_scores(points, table, Scoring(recall_at=(1,)))
    assert scores.classes == ["a", "b", "c", "d"]  # sorted, without the class that has nothing to find
    unit = points / np.linalg.norm(points, axis=1, keepdims=True)
    gallery = np.flatnonzero(table["role"] != "query")
    for label, queries, value in zip(scores.classes, scores.queries, scores.values["recall@1"], strict=True):
        rows = np.flatnonzero((table["label"] == label) & (table["role"] != "gallery"))
        hits = []
        for row in rows:
            others = gallery[gallery != row]
            hits.append(table["label"][others[np.argmax(unit[others] @ unit[row])]] == label)
        assert queries == len(rows)
        assert value == pytest.approx(np.mean(hits))
