"""The report: its numbers and structure, runs with missing parts, and how it behaves in a browser."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pages import ParsedPage, assert_fits_and_loads_nothing
from PIL import Image

from orthoproxy.data import make_table
from orthoproxy.evaluation import Estimate, NoMatchCalibration, Scoring, score
from orthoproxy.evaluation.voting import VoteScores
from orthoproxy.reports.examples import rank_queries
from orthoproxy.reports.figures import create_figure, loss_figure
from orthoproxy.reports.geometry import compare_proxies, effective_rank
from orthoproxy.reports.html import figure_to_svg
from orthoproxy.reports.report import describe_proxies, render_report
from orthoproxy.reports.results import RunResults
from orthoproxy.reports.text import interval, mean, metric_name

CLASSES, IMAGES, DIM = 8, 5, 6


def synthetic_run(folder: Path, groups: bool = False, **changes: Any) -> RunResults:
    """Made up without training: eight classes of five images, with twelve proxies; `changes` replace fields."""
    generator, labels = np.random.default_rng(0), np.repeat(np.arange(CLASSES), IMAGES)
    paths = [str(folder / f"{number}.png") for number in range(len(labels))]
    for path, label in zip(paths, labels, strict=True):
        Image.new("RGB", (40, 30), (30 * int(label), 90, 250 - 30 * int(label))).save(path)
    group = [f"camera {number % 2}" for number in range(len(labels))] if groups else ""
    table = make_table(paths, [f"shape {label}" for label in labels], split="test", group=group)

    def around_centers(noise: float) -> np.ndarray:
        centers = generator.standard_normal((CLASSES, DIM))
        points = centers[labels] + noise * generator.standard_normal((len(labels), DIM))
        return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)

    trained, untrained = around_centers(0.5), around_centers(1.1)
    step = np.arange(1, 41)
    log = {"step": step, "epoch": step // 10, "loss": 9 / step, "metric_loss": 8 / step, "regularizer": 1 / step}
    log |= {"lr/backbone": 1e-4, "lr/projection": 0.0, "lr/proxies": 1e-2, "images_per_second": 100.0}
    validation = {"step": [10, 40], "validation/recall@1": [0.4, 0.7], "validation/map@r": 0.2}
    results = RunResults(
        name="first run",
        evaluation=score(trained, untrained, table, Scoring(bootstrap_samples=100)),
        table=table,
        embeddings=trained,
        baseline_embeddings=untrained,
        log=pd.concat([pd.DataFrame({**log, "seconds": 1.5 * step}), pd.DataFrame(validation)], ignore_index=True),
        proxies=generator.standard_normal((12, DIM)).astype(np.float32),
        classes=[f"thing {number}" for number in range(12)],
        config="name: first run\nseed: 3\n",
        machine={"cpu": "a made-up one", "python": "3.11"},
        notes=["Fewer than 10 validation classes"],
    )
    return replace(results, **changes)


def render(results: RunResults) -> ParsedPage:
    return ParsedPage(render_report(results))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunResults:
    return synthetic_run(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def page(run: RunResults) -> str:
    return render_report(run)


@pytest.fixture(scope="module")
def bare(run: RunResults) -> RunResults:
    """The run without most of its figures, which are slow to draw."""
    return replace(run, log=pd.DataFrame(), proxies=None)


def test_scores_stand_beside_the_baseline_with_intervals(run: RunResults, page: str) -> None:
    rows = ParsedPage(page).tables[0][1:]
    scores = run.evaluation
    assert scores is not None and scores.baseline is not None and scores.difference is not None
    for shown, (name, value) in zip(rows, scores.model.items(), strict=True):
        expected = [metric_name(name), *(f"{mean(x)} {interval(x)}" for x in (value, scores.baseline[name]))]
        difference = scores.difference[name]
        assert shown[:4] == [*expected, f"{mean(difference, sign=True)} {interval(difference)}"]


def test_geometry_and_notes_are_shown(run: RunResults, page: str) -> None:
    parsed = ParsedPage(page)
    assert run.proxies is not None
    assert f"{effective_rank(run.proxies):.1f} of 6" in parsed.text
    closest = next(table for table in parsed.tables if table[0] == ["Class", "Class", "Cosine"])
    pairs, _ = compare_proxies(run.proxies, run.classes)
    assert closest[1:] == [[first, second, f"{cosine:.3f}"] for first, second, cosine in pairs]
    assert all(note in parsed.text for note in run.notes)


def test_the_worst_query_is_shown_with_the_rank_of_its_first_match(run: RunResults, page: str) -> None:
    worst = rank_queries(run.retrieval(run.embeddings))["rank"].max()
    assert worst > 1 and f"rank {worst}" in ParsedPage(page).text


def test_the_page_is_self_contained_small_and_deterministic_with_unique_identifiers(run: RunResults, page: str) -> None:
    parsed = ParsedPage(page)
    assert parsed.loads == [] and not parsed.attributes("script")
    assert not re.search(r"@import|url\((?!#)", page)
    assert len(page) < 1e6
    assert render_report(run) == page
    identifiers = [a["id"] for _, a in parsed.elements if "id" in a]
    assert len(identifiers) == len(set(identifiers))
    targets = [a["href"] for _, a in parsed.elements if a.get("href", "").startswith("#")]
    assert {target[1:] for target in targets} <= set(identifiers)


def test_names_are_escaped(run: RunResults) -> None:
    evil = '<script>alert("1")</script> & $x_2$ \\'
    table = run.table.assign(label=[f"{evil} {label}" for label in run.table["label"]])
    changed = replace(run, name=evil, table=table, classes=[evil] * 12, config=evil, notes=[evil], machine={evil: evil})
    parsed = render(changed)
    assert not parsed.attributes("script")
    assert parsed.text.count(evil) > 20


def test_own_group_excluded_and_included(tmp_path: Path) -> None:
    run = synthetic_run(tmp_path, groups=True, log=pd.DataFrame(), proxies=None)
    head, *rows = render(run).tables[0][1:]
    assert head[-2:] == ["Trained", "Untrained"]
    plain = run.evaluation.exclude_none if run.evaluation else None
    assert plain is not None and plain.baseline is not None
    for shown, (name, value) in zip(rows, plain.model.items(), strict=True):
        assert shown[-2:] == [f"{mean(x)} {interval(x)}" for x in (value, plain.baseline[name])]


def test_scores_by_category(bare: RunResults) -> None:
    table = bare.table.assign(category=["<round>" if row < 20 else "square" for row in range(40)])
    evaluation = score(bare.embeddings, bare.baseline_embeddings, table, Scoring(bootstrap_samples=10))
    shown = next(x for x in render(replace(bare, table=table, evaluation=evaluation)).tables if "Category" in x[0])
    for row, (name, scores) in zip(shown[1:], evaluation.by_category.items(), strict=True):
        found = [x["recall@1"] for x in (scores.model, scores.baseline)]
        assert row[:5] == [name, "4", "20", *(f"{mean(x)} {interval(x)}" for x in found)]


def test_the_vote_of_known_classes(bare: RunResults) -> None:
    assert bare.evaluation is not None
    shares = {"accuracy": Estimate(0.9, 0.8, 1.0), "coverage": Estimate(0.7, 0.6, 0.8)}
    vote = VoteScores(10, 0.5, shares["coverage"], None, [("a", "b", 3), ("c", "a", 1)])
    scores = {"model": shares, "baseline": shares, "difference": shares, "vote": vote}
    tables = render(replace(bare, evaluation=replace(bare.evaluation, known_classes=True, **scores))).tables
    shown = [["Accuracy", "90.0 [80.0, 100.0]"], ["Coverage", "70.0 [60.0, 80.0]"]]
    assert [row[:2] for row in tables[0][1:]] == shown
    assert [["Class", "Answer", "Queries"], ["a", "b", "3"], ["c", "a", "1"]] in tables


NO_TEST_CLASSES = {"table": make_table(["x"], ["x"]).iloc[:0], "evaluation": None}
NO_TEST_CLASSES |= dict.fromkeys(("embeddings", "baseline_embeddings"), np.empty((0, 6)))
NO_CONFIG = {"config": "", "machine": {}, "notes": []}
SPARSE: dict[str, dict[str, Any]] = {
    "no test classes, one step": {**NO_TEST_CLASSES, "log": pd.DataFrame({"step": [1], "loss": [3.0]})},
    "no validation scores": {"log": pd.DataFrame({"step": [1, 2], "loss": [3.0, 2.0], "lr/backbone": [0.0, 0.0]})},
    "one proxy": {**NO_TEST_CLASSES, "proxies": np.ones((1, 6)), "classes": ["one"]},
    "a log of NaN": {**NO_TEST_CLASSES, "log": pd.DataFrame({"step": [1, 2], "loss": [np.nan, np.inf]})},
    "equal proxies, no configuration": {**NO_TEST_CLASSES, **NO_CONFIG, "proxies": np.ones((12, 6))},
    "proxies that diverged": {**NO_TEST_CLASSES, "proxies": np.full((12, 6), np.nan)},
    "one dimension": {"proxies": np.ones((12, 1)), "embeddings": np.ones((40, 1))},
}


@pytest.mark.parametrize("case", SPARSE)
def test_runs_with_missing_parts(bare: RunResults, case: str) -> None:
    shown = render_report(replace(bare, **SPARSE[case]))
    assert shown.rstrip().endswith("</html>")
    assert not re.search(r"\b(nan|None|undefined)\b", ParsedPage(shown).text)


def test_figures_of_many_classes_are_small() -> None:
    many = describe_proxies(np.random.default_rng(0).standard_normal((3000, 6)), ["x"] * 3000)
    assert many is not None
    assert sum(len(plot.svg) for plot in many["plots"]) < 1e5


def test_names_in_a_script_that_the_font_of_figures_lacks() -> None:
    figure, axes = create_figure()
    axes.set_title("猫")
    assert "猫" in figure_to_svg(figure, "cats", "Cats")  # warnings are errors here


def test_missing_images_leave_a_placeholder(bare: RunResults) -> None:
    gone = bare.table.assign(path=[f"{path}.gone" for path in bare.table["path"]])
    parsed = render(replace(bare, table=gone))
    assert not parsed.attributes("img") and parsed.attributes("span", **{"class": "missing"})


def test_a_long_log_is_thinned() -> None:
    step = np.arange(1, 100_001)
    figure = loss_figure(pd.DataFrame({"step": step, "loss": 1e-4 * step}), {"loss": "loss"})
    x, y = (np.asarray(values) for values in figure.axes[0].lines[0].get_data())
    assert len(x) == 400
    assert y == pytest.approx(1e-4 * x)


def test_thresholds_are_those_of_the_matching(bare: RunResults) -> None:
    generator, count = np.random.default_rng(0), 400
    same, other = 0.8 + 0.1 * generator.random(count), 0.9 * generator.random(count)
    matching = NoMatchCalibration(same, other, np.arange(count) // 4, gallery=count)
    table = next(table for table in render(replace(bare, matching=matching)).tables if table[0][1] == "Threshold")
    assert [row[0] for row in table[1:]] == ["1 %", "10 %"]  # 0.1 % needs 1,000 queries
    for rate, row in zip((0.01, 0.1), table[1:], strict=True):
        threshold = matching.threshold(rate)
        assert threshold is not None and row[1] == f"{threshold:.3f}"
        rates = matching.false_match_rate(threshold), matching.match_rate(threshold)
        assert row[2:] == [f"{mean(x)} {interval(x)}" for x in rates]
    few = replace(matching, same=same[:8], other=other[:8], classes=matching.classes[:8])
    assert not any(table[0][1:2] == ["Threshold"] for table in render(replace(bare, matching=few)).tables)
    assert not render(bare).attributes("section", id="no-match")


@pytest.mark.browser
def test_it_fits_a_desk_and_a_phone_and_prints(browser: Any, tmp_path: Path) -> None:
    names = [f"a-{'very-' * 12}long-name-{number}" for number in range(12)]
    (tmp_path / "report.html").write_text(render_report(synthetic_run(tmp_path, groups=True, classes=names)))
    address = (tmp_path / "report.html").as_uri()
    for width, scheme in ((1280, "light"), (320, "dark")):
        assert_fits_and_loads_nothing(browser, address, width, scheme)
    page = browser.new_page(viewport={"width": 390, "height": 800})
    page.goto(address)
    heights = "[...document.querySelectorAll('svg.plot text')].map(x => x.getBoundingClientRect().height)"
    heights = page.evaluate(heights)
    assert sorted(heights)[len(heights) // 2] >= 10  # pixels of a phone
    assert page.pdf(format="A4").startswith(b"%PDF")
    page.close()
