"""Formatted numbers and the summary follow the intervals."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orthoproxy.evaluation import Estimate, Evaluation
from orthoproxy.reports.text import number, points, summarize


def evaluation(difference: Estimate, metric: str = "recall@1") -> Evaluation:
    model, baseline = {metric: Estimate(0.494, 0.469, 0.518)}, {metric: Estimate(0.418, 0.39, 0.44)}
    return Evaluation(model, baseline, {metric: difference}, 3390, 1381, queries_without_positive=0, seconds=1.0)


@pytest.mark.parametrize(("difference", "kind", "written"), [
    (Estimate(0.076, 0.059, 0.092), "better", "7.6 points [5.9, 9.2]"),
    (Estimate(-0.05, -0.07, -0.01), "worse", "5.0 points [1.0, 7.0]"),
    (Estimate(0.004, -0.007, 0.015), "unclear", "+0.4 points [\N{MINUS SIGN}0.7, 1.5]"),
    (Estimate(0.0, 0.0, 0.0), "unclear", "0.0 points [0.0, 0.0]"),
])  # fmt: skip
def test_the_summary_depends_on_the_interval_of_the_difference(difference: Estimate, kind: str, written: str) -> None:
    found, sentence = summarize(evaluation(difference))
    assert found == kind
    assert all(part in sentence for part in (written, "1,381", "49.4 % [46.9, 51.8]", "41.8 % [39.0, 44.0]"))


def test_summaries_without_recall_at_1_or_evaluation_and_signs() -> None:
    assert summarize(evaluation(Estimate(0.1, 0.1, 0.1), "recall@10"))[1].startswith("Recall@10")
    assert summarize(None)[0] == "none"
    # a number that rounds to zero has no sign
    assert [number(value, sign=True) for value in (-0.04, 0.04, -0.06)] == ["0.0", "0.0", "\N{MINUS SIGN}0.1"]


@given(st.lists(st.floats(-1, 1), min_size=3, max_size=3).map(sorted))
def test_what_is_written_shows_on_which_side_of_0_an_interval_ends(values: list[float]) -> None:
    low, value, high = values
    written = points(Estimate(value, low, high), sign=True).replace("\N{MINUS SIGN}", "-")
    mean, *ends = [float(word) for word in re.findall(r"[-+]?[\d.]+", written)]
    assert written.startswith("+") == (mean > 0)
    for shown, end in zip(ends, (low, high), strict=True):
        assert shown == pytest.approx(100 * end, abs=0.051)
        assert shown * end > 0 or abs(end) < 1e-4  # two digits of a percent
