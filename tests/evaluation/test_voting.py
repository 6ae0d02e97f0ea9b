"""The vote of the nearest neighbors and its scores, against plain counting in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orthoproxy.data import make_table
from orthoproxy.data.table import evaluation_images
from orthoproxy.evaluation import Scoring, score, vote
from orthoproxy.evaluation.known_classes import add_vote


def plain_vote(similarity: list[float], labels: list[str], threshold: float) -> tuple[str | None, float]:
    votes: dict[str, list[float]] = {}
    for value, label in sorted(zip(similarity, labels, strict=True), key=lambda pair: -pair[0]):
        if value >= threshold:
            votes.setdefault(label, []).append(value)
    weight = {label: sum(math.exp(value / 0.03) for value in values) for label, values in votes.items()}
    ranked = sorted(votes, key=lambda label: (-weight[label], -votes[label][0], label))
    return (ranked[0], weight[ranked[0]] / sum(weight.values())) if ranked else (None, 0.0)


@given(st.lists(st.tuples(st.sampled_from([-0.5, 0.0, 0.5, 0.6, 0.9]), st.sampled_from("abc")), min_size=1, max_size=8),
       st.sampled_from([-1.0, 0.5, 0.7]), st.randoms())  # fmt: skip
def test_the_label_with_most_weight_wins_in_any_order(neighbors: list, threshold: float, random) -> None:
    for _ in range(2):
        similarity, labels = ([pair[i] for pair in neighbors] for i in (0, 1))
        (winner,), (share,) = vote(np.array([similarity]), np.array([labels]), threshold)
        label, expected = plain_vote(similarity, labels, threshold)
        assert (labels[winner] if winner >= 0 else None) == label
        assert share == pytest.approx(expected)
        random.shuffle(neighbors)


@pytest.mark.parametrize("threshold", [None, 0.8])
def test_scores_of_the_vote_are_those_of_plain_counting(threshold: float | None) -> None:
    generator = np.random.default_rng(0)
    label = [f"class {number}" for number in generator.integers(0, 8, 240)]
    split = generator.choice(["train", "test"], 240)
    split = ["test" if c == "class 7" else s for c, s in zip(label, split, strict=True)]
    table = evaluation_images(make_table([f"{number}.png" for number in range(240)], label, split), "test")
    centers = dict(zip(sorted(set(label)), generator.standard_normal((8, 6)), strict=True))
    points = np.stack([centers[name] for name in table.label])
    model, baseline = (points + spread * generator.standard_normal((240, 6)) for spread in (0.5, 1.0))
    scoring = Scoring(recall_at=(1,), bootstrap_samples=50)
    found = add_vote(score(model, baseline, table, scoring), (model, baseline), table, (threshold, threshold), scoring)
    assert found.known_classes and found.vote is not None and found.baseline and found.difference
    assert type(found).from_dict(found.to_dict()) == found
    for scores, points in ((found.model, model), (found.baseline, baseline)):
        units = points / np.linalg.norm(points, axis=1, keepdims=True)
        gallery = np.flatnonzero(table.split == "train")
        right, answered, wrong, other = [], [], {}, {True: [], False: []}
        for query in np.flatnonzero(table.split == "test"):
            similarity, truth = units[gallery] @ units[query], table.label[query]
            nearest = np.argsort(-similarity)[:10]
            ten = similarity[nearest].tolist(), table.label[gallery[nearest]].tolist()
            other[truth == "class 7"].append(similarity[(table.label[gallery] != truth).to_numpy()].max())
            if truth == "class 7":
                continue
            right.append(plain_vote(*ten, -1)[0] == truth)
            answer = plain_vote(*ten, -1 if threshold is None else threshold)[0]
            answered += [] if answer is None else [answer == truth]
            if answer not in (None, truth):
                wrong[truth, answer] = wrong.get((truth, answer), 0) + 1
        assert scores["accuracy"].value == pytest.approx(np.mean(right)) and found.queries == len(right)
        assert ("coverage" in scores) == (threshold is not None)
        if threshold is not None:
            assert 0 < len(answered) < len(right)
            assert scores["coverage"].value == pytest.approx(len(answered) / len(right))
            assert scores["precision"].value == pytest.approx(np.mean(answered))
        if points is model:
            assert {(a, b): n for a, b, n in found.vote.confusions} == wrong and len(wrong) < 10
            estimates = (found.vote.false_known, found.vote.false_known_unseen)
            for estimate, values in zip(estimates, (other[False], other[True]), strict=True):
                expected = threshold and np.mean(np.array(values) >= threshold)
                assert (estimate and estimate.value) == pytest.approx(expected)
    if threshold is not None:  # no precision where the baseline answers nothing, and none of samples without an answer
        both, rare = (model, baseline), (threshold, 0.999)
        found_rare = add_vote(score(model, baseline, table, scoring), both, table, rare, scoring)
        assert found_rare.model.keys() == found_rare.difference.keys() == found.model.keys() - {"precision"}
    for name, difference in found.difference.items():
        assert difference.value == pytest.approx(found.model[name].value - found.baseline[name].value)
        assert difference.low <= difference.value <= difference.high


def test_a_query_that_may_find_no_other_class_votes_too() -> None:
    """It is a near copy of the only other image in the gallery that is not of its class."""
    paths, labels, split = list("123456"), list("aababb"), ["train"] * 3 + ["test"] * 3
    table = evaluation_images(make_table(paths, labels, split), "test")
    table = table.assign(copies=[7 if path in "34" else -1 for path in table.path])
    x, scoring = np.eye(6), Scoring(recall_at=(1,), bootstrap_samples=2, exclude_duplicates=True)
    found = add_vote(score(x, x, table, scoring), (x, x), table, (-1.0, -1.0), scoring)
    assert found.vote is not None and found.vote.false_known is not None
    assert found.model["coverage"].value == 1 and found.vote.false_known.value == pytest.approx(2 / 3)
