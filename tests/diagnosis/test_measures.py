"""The measures under the checks against their definitions, written out."""

import numpy as np
import pytest
from constructed import split
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from orthoproxy.diagnosis.label_errors import LeaveOneOut, find_suspects, leave_one_out, whiten
from orthoproxy.diagnosis.overfitting import match_class_sizes, recall_gap
from orthoproxy.evaluation import query_metrics
from orthoproxy.evaluation.evaluate import build_retrieval


@st.composite
def labeled(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Unit rows, and labels 0 to C - 1 each of which occurs."""
    classes, more, seed = draw(st.integers(2, 6)), draw(st.integers(0, 20)), draw(st.integers(0, 2**16))
    generator = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(classes), generator.integers(0, classes, more)])
    x = generator.standard_normal((len(labels), 5))
    return x / np.linalg.norm(x, axis=1, keepdims=True), labels


@given(labeled())
def test_each_image_is_compared_with_means_that_leave_it_out(data: tuple[np.ndarray, np.ndarray]) -> None:
    x, labels = data
    scores = leave_one_out(x, labels)
    for row in range(len(x)):
        rest = np.arange(len(x)) != row
        if not (rest & (labels == labels[row])).any():
            assert np.isnan(scores.margin[row]) and np.isnan(scores.rank[row]) and scores.most_similar[row] == -1
            continue
        means = np.stack([x[rest & (labels == label)].sum(axis=0) for label in range(labels.max() + 1)])
        cosines = means @ x[row] / np.linalg.norm(means, axis=1)
        others = np.delete(cosines, labels[row])
        assert scores.margin[row] == pytest.approx(cosines[labels[row]] - others.max(), abs=1e-9)
        assert scores.rank[row] == pytest.approx((others > cosines[labels[row]]).mean())
        assert cosines[scores.most_similar[row]] == pytest.approx(others.max())


@given(st.lists(st.floats(0, 1), min_size=1, max_size=200))
def test_suspects_are_the_lower_bound_of_the_estimate(values: list[float]) -> None:
    rank = np.array(values)
    found = find_suspects(LeaveOneOut(-rank, rank, np.zeros(len(rank), dtype=int)))
    late = int((rank > 0.8).sum())
    bounds = binomtest(late, len(rank)).proportion_ci(method="exact")
    estimates = (found.share.value, found.share.low, found.share.high)
    assert estimates == pytest.approx([min(1, 5 * x) for x in (late / len(rank), bounds.low, bounds.high)])
    assert len(found.rows) == int(found.share.low * len(rank))
    assert (np.diff(rank[found.rows]) <= 0).all()


@given(labeled(), labeled(), st.integers(0, 2**16))
def test_both_sides_get_classes_of_the_same_sizes(first, second, seed) -> None:
    sides = (first[1], second[1])
    rows = list(match_class_sizes(*sides, np.random.default_rng(seed)))
    sizes = [sorted(np.unique(labels[kept], return_counts=True)[1]) for labels, kept in zip(sides, rows, strict=True)]
    assert sizes[0] == sizes[1]
    assert len(sizes[0]) == min(len(set(labels)) for labels in sides)
    assert all(len(set(kept.tolist())) == len(kept) for kept in rows)


def test_a_split_with_more_classes_is_no_harder_to_search() -> None:
    """Eight times the classes cost some 30 points of Recall@1; the comparison must not see them."""
    gaps, unmatched = [], []
    for seed in range(5):
        generator = np.random.default_rng(seed)
        many = split("seen", generator.standard_normal((160, 8)), 0.6, 0.6, 10 * seed)
        few = split("new", generator.standard_normal((20, 8)), 0.6, 0.6, 10 * seed + 5)
        gap = recall_gap(many, few)
        assert gap is not None and gap.classes == 20
        gaps.append(gap.training.value - gap.unseen.value)
        retrievals = [build_retrieval(x.embeddings, x.table) for x in (many, few)]
        recalls = [np.nanmean(query_metrics(retrieval, [1])["recall@1"]) for retrieval in retrievals]
        unmatched.append(recalls[0] - recalls[1])
    assert np.mean(unmatched) < -0.2
    assert abs(np.mean(gaps)) < 0.06


def test_whitened_features_ignore_rotation_and_length() -> None:
    generator = np.random.default_rng(0)
    x = generator.standard_normal((60, 7)) * np.arange(1, 8)
    rotation, _ = np.linalg.qr(generator.standard_normal((7, 7)))
    first, second = whiten(x), whiten(3 * x @ rotation)
    assert first @ first.T == pytest.approx(second @ second.T, abs=1e-9)
