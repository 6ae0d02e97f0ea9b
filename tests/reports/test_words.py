"""The verdict says what the intervals say."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orthoproxy.evaluation import Estimate, Evaluation
from orthoproxy.reports.words import number, points, score_rows, verdict


def evaluation(difference: Estimate, metric: str = "recall@1") -> Evaluation:
    return Evaluation(
        {metric: Estimate(0.494, 0.469, 0.518)},
        {metric: Estimate(0.418, 0.39, 0.44)},
        {metric: difference},
        queries=3390,
        classes=1381,
        without_positive=0,
        seconds=1.0,
    )


@pytest.mark.parametrize(
    ("difference", "kind", "sentence"),
    [
        (Estimate(0.076, 0.059, 0.092), "better", "Training gained 7.6 points [5.9, 9.2]."),
        (Estimate(-0.05, -0.07, -0.01), "worse", "Training made retrieval worse."),
        (Estimate(-0.05, -0.07, -0.01), "worse", "by 5.0 points [1.0, 7.0]."),
        (Estimate(0.004, -0.007, 0.015), "unclear", "+0.4 points [−0.7, 1.5], may be chance"),  # noqa: RUF001
        (Estimate(0.0, 0.0, 0.0), "unclear", "its interval includes 0"),
    ],
)
def test_verdict(difference: Estimate, kind: str, sentence: str) -> None:
    found = verdict(evaluation(difference))
    assert found[0] == kind
    assert sentence in found[1]
    assert "1,381 unseen classes" in found[1]
    assert "49.4 % [46.9, 51.8]" in found[1]


def test_verdict_without_recall_at_1_takes_the_first_metric() -> None:
    assert verdict(evaluation(Estimate(0.1, 0.1, 0.1), "recall@10"))[1].startswith("Recall@10 on")


def test_verdict_without_test_classes() -> None:
    assert verdict(None) == ("none", "The data had no test classes, so how well the model retrieves was not judged.")
    assert score_rows(None) == []


def test_no_sign_before_a_zero() -> None:
    assert [number(value, sign=True) for value in (-0.04, 0.04, -0.06)] == ["0.0", "0.0", "\N{MINUS SIGN}0.1"]


def read(text: str) -> list[float]:
    return [float(word) for word in re.findall(r"[-+]?[\d.]+", text.replace("\N{MINUS SIGN}", "-"))]


@given(st.lists(st.floats(-1, 1), min_size=3, max_size=3).map(sorted))
def test_what_is_written_leaves_no_doubt_on_which_side_of_0_an_interval_ends(values: list[float]) -> None:
    low, value, high = values
    written = points(Estimate(value, low, high), sign=True)
    mean, *ends = read(written)
    assert written.startswith("+") == (mean > 0)
    for said, end in zip(ends, (low, high), strict=True):
        assert said == pytest.approx(100 * end, abs=0.051)
        assert said * end > 0 or abs(end) < 1e-4  # two digits of a percent


@pytest.mark.parametrize(
    ("estimate", "written"),
    [
        (Estimate(0.0017, 0.0001, 0.0034), "+0.17 points [0.01, 0.34]"),
        (Estimate(-0.0003, -0.0012, 0.0004), "\N{MINUS SIGN}0.03 points [\N{MINUS SIGN}0.12, 0.04]"),
        (Estimate(0.0003, -0.002, 0.002), "0.0 points [\N{MINUS SIGN}0.2, 0.2]"),
        (Estimate(0.0, 0.0, 0.0), "0.0 points [0.0, 0.0]"),
    ],
)
def test_digits_of_a_difference(estimate: Estimate, written: str) -> None:
    assert points(estimate, sign=True) == written
