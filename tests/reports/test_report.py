"""The page: what it holds, what it never does, and the runs of which little is known."""

from __future__ import annotations

import html
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from synthetic_run import synthetic_run

from orthoproxy.data import make_table
from orthoproxy.evaluation import Matching, Scoring, score
from orthoproxy.reports import RunResults, effective_rank, render_report, retrieval_strip
from orthoproxy.reports.figures import cosine_matrix_figure, rate_figure, validation_figure
from orthoproxy.reports.sections import proxy_geometry
from orthoproxy.reports.style import svg

LOADS = re.compile(r"""(?:src|href|action|poster|data|srcset)\s*=\s*["'](?!#|data:)|@import|url\((?!#)""")


def text_of(page: str) -> str:
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", page)).replace("\N{NO-BREAK SPACE}", " ").split())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunResults:
    return synthetic_run(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def page(run: RunResults) -> str:
    return render_report(run)


@pytest.fixture(scope="module")
def bare(run: RunResults) -> RunResults:
    """The run without most of its figures, which take long to draw."""
    return replace(run, log=pd.DataFrame(), proxies=None)


def test_it_holds_the_scores_the_settings_and_the_notes(run: RunResults, page: str) -> None:
    shown = text_of(page)
    assert run.evaluation is not None and run.evaluation.untrained is not None and run.proxies is not None
    for estimates in (run.evaluation.trained, run.evaluation.untrained):
        for estimate in estimates.values():
            assert str(estimate) in shown
    assert f"{effective_rank(run.proxies):.1f} of 6" in shown
    for expected in ("first run", "seed: 3", "a made-up one", "Fewer than 10 validation classes", "40 steps in 1:00"):
        assert expected in shown


def test_it_asks_no_other_host_for_anything(page: str) -> None:
    assert not LOADS.findall(page)
    assert "<script" not in page
    assert set(re.findall(r"""["'(](https?:[^"')]*)""", page)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }


def test_it_is_small_and_the_same_each_time(run: RunResults, page: str) -> None:
    assert len(page) < 1e6
    assert render_report(run) == page


def test_each_figure_says_what_it_shows_and_ids_are_unique(page: str) -> None:
    figures = re.findall(r'<svg role="img" aria-label="([^"]+)" class="plot"', page)
    assert len(figures) == 8
    identifiers = re.findall(r'\sid="([^"]+)"', page)
    assert len(identifiers) == len(set(identifiers))
    for target in re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', page):
        assert (target[0] or target[1]) in identifiers
    assert len(re.findall(r"<img (?![^>]*alt=)", page)) == 0


def test_right_and_wrong_neighbours_are_marked_by_more_than_colour(page: str) -> None:
    for kind, mark in (("right", "✓"), ("wrong", "✗")):
        frames = page.count(f'class="picture {kind}"')
        assert frames > 0
        assert page.count(f'aria-label="{kind}">{mark}') == frames


def test_names_are_escaped(run: RunResults) -> None:
    evil = '<script>alert("1")</script> & $x_2$ \\'
    table = run.table.assign(label=[f"{evil} {label}" for label in run.table["label"]])
    changed = replace(run, name=evil, table=table, classes=[evil] * 12, config=evil, notes=[evil], machine={evil: evil})
    shown = render_report(changed)
    assert "<script" not in shown
    assert shown.count(html.escape(evil).replace("&#x27;", "&#39;").replace("&quot;", "&#34;")) > 20
    assert evil.replace("  ", " ") in text_of(shown)


def test_own_group_excluded_and_included(tmp_path: Path) -> None:
    run = synthetic_run(tmp_path, groups=True, log=pd.DataFrame(), proxies=None)
    shown = text_of(render_report(run))
    assert run.evaluation is not None and run.evaluation.own_group_included is not None
    assert "leaves out the query’s own group" in shown  # noqa: RUF001
    for evaluation in (run.evaluation, run.evaluation.own_group_included):
        assert str(evaluation.trained["map@r"]) in shown


def test_queries_without_positive_are_counted(tmp_path: Path) -> None:
    run = synthetic_run(tmp_path, log=pd.DataFrame(), proxies=None)
    table = run.table.assign(label=["alone", *run.table["label"][1:]])
    evaluation = score(run.trained, run.untrained, table, Scoring(draws=10))
    shown = text_of(render_report(replace(run, table=table, evaluation=evaluation)))
    assert "1 more had no other image of their class and were left out" in shown


NOTHING = make_table(["x"], ["x"]).iloc[:0]
LITTLE: dict[str, dict[str, Any]] = {
    "no untrained encoder": {"untrained": None, "evaluation": None},
    "no test classes": {"evaluation": None, "table": NOTHING, "trained": np.empty((0, 6)), "untrained": None},
    "no proxies": {"proxies": None},
    "one proxy": {"proxies": np.ones((1, 6)), "classes": ["one"]},
    "two proxies": {"proxies": np.eye(2, 6), "classes": ["one", "two"]},
    "proxies all alike": {"proxies": np.ones((12, 6))},
    "proxies of zeros": {"proxies": np.zeros((12, 6))},
    "proxies that diverged": {"proxies": np.full((12, 6), np.nan)},
    "one dimension": {"proxies": np.ones((12, 1)), "trained": np.ones((40, 1))},
    "no log": {"log": pd.DataFrame()},
    "a log of one step": {"log": pd.DataFrame({"step": [1], "loss": [3.0]})},
    "a log without validation": {
        "log": pd.DataFrame({"step": [1, 2], "loss": [3.0, 2.0], "rate/backbone": [0.0, 0.0]})
    },
    "a log of not-a-numbers": {"log": pd.DataFrame({"step": [1, 2], "loss": [np.nan, np.inf]})},
    "no configuration, machine, notes": {"config": "", "machine": {}, "notes": []},
}


@pytest.mark.parametrize("case", LITTLE)
def test_runs_of_which_little_is_known(bare: RunResults, case: str) -> None:
    shown = render_report(replace(bare, **LITTLE[case]))
    assert shown.rstrip().endswith("</html>")
    assert not re.search(r"\b(nan|None|undefined)\b", text_of(shown))


def test_no_untrained_encoder(bare: RunResults) -> None:
    evaluation = score(bare.trained, None, bare.table, Scoring(draws=10))
    shown = text_of(render_report(replace(bare, untrained=None, evaluation=evaluation)))
    assert "There is no untrained encoder to compare with" in shown
    assert str(evaluation.trained["recall@1"]) in shown


def test_what_is_missing_is_said(bare: RunResults) -> None:
    assert "had no test classes" in text_of(render_report(replace(bare, **LITTLE["no test classes"])))
    assert "has no proxies" in text_of(render_report(replace(bare, **LITTLE["no proxies"])))
    assert "training diverged" in text_of(render_report(replace(bare, **LITTLE["proxies that diverged"])))


def test_many_classes_get_a_histogram_instead_of_a_matrix() -> None:
    generator = np.random.default_rng(0)
    few, many = (proxy_geometry(generator.standard_normal((count, 6)), ["x"] * count) for count in (200, 3000))
    assert few is not None and many is not None
    assert few.plots[0].title == "Cosine of each proxy with each other"
    assert [plot.title for plot in many.plots] == ["Cosines of all pairs", "Spectrum"]
    assert sum(len(plot.drawing) for plot in many.plots) < 1e5


def test_a_picture_that_is_gone_leaves_a_placeholder(bare: RunResults) -> None:
    gone = bare.table.assign(path=[f"{path}.gone" for path in bare.table["path"]])
    shown = render_report(replace(bare, table=gone))
    assert "no picture" in text_of(shown)
    assert "<img" not in shown
    assert retrieval_strip(replace(bare, table=gone)).axes


def test_queries_and_gallery_apart(bare: RunResults) -> None:
    table = bare.table.assign(role=["query", "gallery"] * 20)
    evaluation = score(bare.trained, bare.untrained, table, Scoring(draws=10))
    assert "20 queries of 8 classes" in text_of(render_report(replace(bare, table=table, evaluation=evaluation)))


def test_strip_shows_both_models_side_by_side(run: RunResults, tmp_path: Path) -> None:
    figure = retrieval_strip(run, queries=3, neighbours=4)
    assert len(figure.axes) == 3 * (1 + 4 + 4)
    assert [text.get_text() for text in figure.texts[:3]] == ["Query", "Untrained", "Trained"]
    assert len(retrieval_strip(replace(run, untrained=None), queries=3, neighbours=4).axes) == 3 * (1 + 4)
    figure.savefig(tmp_path / "strip.png", dpi=50)


def test_a_long_log_is_thinned() -> None:
    step = np.arange(1, 100_001)
    figure = rate_figure(pd.DataFrame({"step": step, "rate/backbone": 1e-4 * step}), ["rate/backbone"])
    x, y = (np.asarray(values) for values in figure.axes[0].lines[0].get_data())
    assert len(x) == 400
    assert y == pytest.approx(1e-4 * x)


def test_validation_marks_the_best() -> None:
    log = pd.DataFrame({"step": [1, 2, 3, 4], "validation/recall@1": [0.1, np.nan, 0.42, 0.3]})
    figure = validation_figure(log, ["validation/recall@1"])
    assert [text.get_text() for text in figure.axes[0].texts] == ["42.0"]


def test_colours_of_a_figure_are_the_page_s(run: RunResults) -> None:
    drawn = svg(cosine_matrix_figure(np.eye(4), list("abcd")), "matrix", 'a "matrix" <of> cosines')
    assert "var(--muted, #" in drawn
    assert 'aria-label="a &#34;matrix&#34; &lt;of&gt; cosines"' in drawn
    assert "DejaVu" not in drawn


def matching(queries: int) -> Matching:
    generator = np.random.default_rng(0)
    same, other = 0.8 + 0.1 * generator.random(queries), 0.9 * generator.random(queries)
    return Matching(same, other, np.arange(queries) // 4, gallery=queries)


def test_the_roc_of_matches_and_the_thresholds_are_shown(bare: RunResults) -> None:
    found = matching(400)
    page = render_report(replace(bare, matching=found))
    shown = text_of(page)
    assert "Match, or no match" in shown and "From the 100 validation classes" in shown
    for rate, said in ((0.01, "1 %"), (0.1, "10 %")):
        threshold = found.threshold(rate)
        assert threshold is not None
        rates = (found.false_match_rate(threshold), found.match_rate(threshold))
        assert f"{said} {threshold:.3f} {rates[0]} {rates[1]}" in shown
    assert "0.1 %" not in shown  # takes 1,000 queries
    (drawing,) = re.findall(r'aria-label="(Match rate over[^"]*)"', page)
    assert re.search(r"\d+ % at 1 %; \d+ % at 10 %", drawing)
    assert '<a href="#no-match">' in page and 'id="no-match"' in page
    assert not LOADS.findall(page)


def test_without_validation_classes_nothing_is_said_of_no_match(bare: RunResults) -> None:
    assert "no match" not in text_of(render_report(bare)).lower()


def test_too_few_queries_for_any_threshold(bare: RunResults) -> None:
    assert "There are too few queries to choose a threshold" in text_of(
        render_report(replace(bare, matching=matching(8)))
    )
