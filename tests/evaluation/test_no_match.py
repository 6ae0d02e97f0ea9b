"""The threshold below which a search has found nothing, against plain counting."""

from typing import get_args

import numpy as np
import pytest
from brute_force import neighbors, random_embeddings, random_table
from hypothesis import example, given
from hypothesis import strategies as st

from orthoproxy.data import make_table
from orthoproxy.evaluation import NoMatchCalibration, Scoring, calibrate_no_match
from orthoproxy.evaluation.evaluate import build_retrieval
from orthoproxy.evaluation.retrieval import Exclude

RATES = st.floats(0.01, 0.9)


@st.composite
def matchings(draw: st.DrawFn) -> NoMatchCalibration:
    """Few different similarities, so that there are many ties; some queries without an image of their class."""
    size = draw(st.integers(1, 150))
    generator = np.random.default_rng(draw(st.integers(0, 10_000)))
    levels = draw(st.integers(1, 40))
    same, other = generator.integers(0, levels, size=(2, size)) / levels
    same[1:][generator.random(size - 1) < 0.2] = np.nan
    return NoMatchCalibration(same, other, generator.integers(0, 5, size), gallery=size)


@given(matchings(), RATES)
@example(NoMatchCalibration(np.ones(100), np.arange(100.0), np.arange(100), gallery=100), 0.29)  # times 100: below 29
def test_the_threshold_is_the_lowest_that_keeps_the_rate(matching: NoMatchCalibration, rate: float) -> None:
    threshold = matching.threshold(rate)
    assert (threshold is None) == (rate * len(matching.other) < 1 - 1e-9)  # too few queries to show the rate
    if threshold is None:
        return
    assert (matching.other >= threshold).mean() <= rate + 1e-9
    lower = matching.other[matching.other < threshold]
    assert (matching.other >= lower.max()).mean() > rate  # the next lower similarity would let in too many


@given(matchings(), RATES)
def test_the_curve_holds_what_every_threshold_gives(matching: NoMatchCalibration, rate: float) -> None:
    false, found = matching.curve()
    assert false[0] == 0 and false[-1] == 1
    assert (np.diff(false) > 0).all() and (np.diff(found) >= 0).all()
    known = matching.same[~np.isnan(matching.same)]
    assert len(false) == len(set(matching.other)) + 1
    threshold = matching.threshold(rate)
    if threshold is not None:
        place = np.flatnonzero(np.isclose(false, (matching.other >= threshold).mean()))
        assert found[place] == pytest.approx((known >= threshold).mean())
        assert not (false[false <= rate + 1e-9] > false[place]).any()  # it is the best point within the rate


@given(matchings(), st.floats(0, 1))
def test_rates_are_shares_and_lie_in_their_intervals(matching: NoMatchCalibration, threshold: float) -> None:
    known = matching.same[~np.isnan(matching.same)]
    for estimate, expected in (
        (matching.false_match_rate(threshold, samples=50), (matching.other >= threshold).mean()),
        (matching.match_rate(threshold, samples=50), (known >= threshold).mean()),
    ):
        assert estimate.value == pytest.approx(expected)
        assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1


@pytest.mark.parametrize("exclude", get_args(Exclude))
@pytest.mark.parametrize("roles", [False, True])
def test_best_hits_are_those_of_a_plain_search(exclude: Exclude, roles: bool) -> None:
    table = random_table(3, groups=True)
    table = table if roles else table.assign(role="both")
    points = random_embeddings(table, 3).astype(np.float32)
    matching = calibrate_no_match(points, table, Scoring(exclude=exclude, block_memory_mb=0.01))
    assert matching is not None
    # a query's own group is left out of its own class only
    for found, own, rule in ((matching.same, True, exclude), (matching.other, False, "none")):
        retrieval = build_retrieval(points, table, rule)
        for query, similarity in zip(retrieval.queries, found, strict=True):
            of_kind = [s for row, s in neighbors(retrieval, query) if (table.label[row] == table.label[query]) == own]
            assert similarity == pytest.approx(of_kind[0] if of_kind else np.nan, abs=1e-12, nan_ok=True)
    assert matching.gallery == (table["role"] != "query").sum()


def test_without_two_classes_or_two_images_of_one_there_is_nothing_to_match() -> None:
    paths = ["1.png", "2.png", "3.png"]
    assert calibrate_no_match(np.eye(3), make_table(paths, ["a", "a", "a"]), Scoring()) is None
    assert calibrate_no_match(np.eye(3), make_table(paths, ["a", "b", "c"]), Scoring()) is None
    assert calibrate_no_match(np.eye(3), make_table(paths, ["a", "a", "b"], role="query"), Scoring()) is None
    assert calibrate_no_match(np.empty((0, 3)), make_table(["1.png"], ["a"]).iloc[:0], Scoring()) is None
