"""The measures under the checks against their definitions, written out."""

from __future__ import annotations

import numpy as np
import pytest
from constructed import side
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from orthoproxy.diagnosis import evened, out_of_sample, plant, recall_gap, suspects
from orthoproxy.diagnosis.confusions import wilson
from orthoproxy.diagnosis.label_errors import OutOfSample
from orthoproxy.diagnosis.overfitting import _alike
from orthoproxy.evaluation import build_retrieval, query_metrics


@st.composite
def labelled(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Unit rows, and labels 0 to C - 1 each of which occurs."""
    classes, more, seed = draw(st.integers(2, 6)), draw(st.integers(0, 20)), draw(st.integers(0, 2**16))
    generator = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(classes), generator.integers(0, classes, more)])
    x = generator.standard_normal((len(labels), 5))
    return x / np.linalg.norm(x, axis=1, keepdims=True), labels


@given(labelled())
def test_each_image_is_judged_by_a_model_that_did_not_see_it(data: tuple[np.ndarray, np.ndarray]) -> None:
    x, labels = data
    seen = out_of_sample(x, labels)
    for row in range(len(x)):
        rest = np.arange(len(x)) != row
        if not (rest & (labels == labels[row])).any():
            assert np.isnan(seen.margin[row]) and np.isnan(seen.place[row]) and seen.looks_like[row] == -1
            continue
        means = np.stack([x[rest & (labels == label)].sum(axis=0) for label in range(labels.max() + 1)])
        cosines = means @ x[row] / np.linalg.norm(means, axis=1)
        others = np.delete(cosines, labels[row])
        assert seen.margin[row] == pytest.approx(cosines[labels[row]] - others.max(), abs=1e-9)
        assert seen.place[row] == pytest.approx((others > cosines[labels[row]]).mean())
        assert cosines[seen.looks_like[row]] == pytest.approx(others.max())


@given(st.lists(st.floats(0, 1), min_size=1, max_size=200))
def test_suspects_are_as_many_as_there_surely_are(places: list[float]) -> None:
    place = np.array(places)
    found = suspects(OutOfSample(-place, place, np.zeros(len(place), dtype=int)))
    late = int((place > 0.8).sum())
    bounds = binomtest(late, len(place)).proportion_ci(method="exact")
    assert found.share.value == pytest.approx(min(1, 5 * late / len(place)))
    assert found.share.low == pytest.approx(min(1, 5 * bounds.low))
    assert found.share.high == pytest.approx(min(1, 5 * bounds.high))
    assert len(found.rows) == int(found.share.low * len(place))
    assert (np.diff(place[found.rows]) <= 0).all()


def test_half_of_the_labels_wrong_is_estimated_as_half() -> None:
    generator = np.random.default_rng(0)
    place = np.concatenate([generator.random(5000), np.zeros(5000)])
    found = suspects(OutOfSample(-place, place, np.zeros(len(place), dtype=int)))
    assert found.share.low < 0.5 < found.share.high
    assert found.share.value == pytest.approx(0.5, abs=0.03)


@given(labelled(), st.floats(0, 1), st.integers(0, 9))
def test_planting_changes_so_many_labels_and_no_others(
    data: tuple[np.ndarray, np.ndarray], fraction: float, seed: int
) -> None:
    labels = data[1]
    changed, rows = plant(labels, fraction, seed)
    assert sorted(rows) == np.flatnonzero(changed != labels).tolist()
    assert len(rows) == round(fraction * len(labels))
    assert set(changed) <= set(labels)


@given(st.integers(1, 300), st.data())
def test_wilson_is_scipys(of: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(0, of))
    ours, theirs = wilson(count, of), binomtest(count, of).proportion_ci(method="wilson")
    assert (ours.low, ours.high) == (pytest.approx(theirs.low, abs=1e-4), pytest.approx(theirs.high, abs=1e-4))


@given(labelled(), labelled(), st.integers(0, 2**16))
def test_both_sides_get_classes_of_the_same_sizes(
    first: tuple[np.ndarray, np.ndarray], second: tuple[np.ndarray, np.ndarray], seed: int
) -> None:
    rows = list(_alike(first[1], second[1], np.random.default_rng(seed)))
    sizes = [
        sorted(np.unique(side[1][kept], return_counts=True)[1])
        for side, kept in zip((first, second), rows, strict=True)
    ]
    assert sizes[0] == sizes[1]
    assert len(sizes[0]) == min(len(set(first[1])), len(set(second[1])))
    assert all(len(set(kept.tolist())) == len(kept) for kept in rows)


def test_a_side_with_more_classes_is_no_harder_to_search() -> None:
    """Eight times the classes cost some 30 points of Recall@1; the comparison must not see them."""
    gaps, plain = [], []
    for seed in range(5):
        generator = np.random.default_rng(seed)
        many = side("seen", generator.standard_normal((160, 8)), 0.6, 0.6, 10 * seed)
        few = side("new", generator.standard_normal((20, 8)), 0.6, 0.6, 10 * seed + 5)
        gap = recall_gap(many, few)
        assert gap is not None and gap.classes == 20
        gaps.append(gap.training.value - gap.unseen.value)
        means = [
            np.nanmean(query_metrics(build_retrieval(x.trained, x.table, False), [1])["recall@1"]) for x in (many, few)
        ]
        plain.append(means[0] - means[1])
    assert np.mean(plain) < -0.2
    assert abs(np.mean(gaps)) < 0.06


def test_evened_features_ignore_rotation_and_length() -> None:
    generator = np.random.default_rng(0)
    x = generator.standard_normal((60, 7)) * np.arange(1, 8)
    rotation, _ = np.linalg.qr(generator.standard_normal((7, 7)))
    first, second = evened(x), evened(3 * x @ rotation)
    assert first @ first.T == pytest.approx(second @ second.T, abs=1e-9)
