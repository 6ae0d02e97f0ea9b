"""The page of a study: it says what the results say, whatever is missing, and needs nothing beside it."""

from __future__ import annotations

import html
import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from synthetic_study import ROOT, WEIGHT, WEIGHTS, a_cell, a_study, its_cells

from orthoproxy.core.errors import InputError
from orthoproxy.evaluation import Estimate
from orthoproxy.reports.text import MINUS
from orthoproxy.studies import figures
from orthoproxy.studies.comparison import Row, rows_of
from orthoproxy.studies.page import all_rows, render_page, write_page
from orthoproxy.studies.plan import Method, Study, score_of
from orthoproxy.studies.speed import level_to_reach, speeds
from orthoproxy.studies.statistics import Difference
from orthoproxy.studies.study_file import read_study
from orthoproxy.studies.words import answers, frozen_methods, notes, tried_settings, worse_than_untrained

PAGES = ROOT / "docs/studies"
KEPT = [path for path in sorted(ROOT.glob("studies/*.yaml")) if (PAGES / path.stem / "table.md").is_file()]


def page_of(study: Study, cells: list[dict[str, Any]]) -> str:
    """The page with line breaks and repeated spaces made one space."""
    return " ".join(render_page(study, cells, all_rows(study, cells)).split())


def test_a_finished_study_is_told_whole(tmp_path: Path) -> None:
    study = a_study()
    write_page(study, its_cells(study), tmp_path / "made-up")
    page = (tmp_path / "made-up/index.html").read_text(encoding="utf-8")
    text = " ".join(page.split())
    assert "<h1>Does Soft Orthogonality help on icons?</h1>" in page
    assert "chosen on validation classes; in this study the test classes were judged once" in text
    assert (
        "so-excess is better than proxy-anchor" in text and "so-sum against proxy-anchor: no difference shown" in text
    )
    assert "with 8 seeds, of new seeds" in text
    assert "cells are there" not in text and "frozen" not in text
    assert "orthoproxy study studies/made-up.yaml --results" in text
    assert "AMD EPYC" in text and "2026-11-24" in text
    titles = re.findall(r"<h3>(.*?)</h3>", page)
    assert titles == [
        "Against proxy-anchor",
        "Scores",
        WEIGHT,
        "Score against time",
        "Score against images",
        titles[5],
        "Effective rank of the proxies",
        "Largest cosine of two proxies",
        "Distance to the Welch bound, for each proxy",
    ]
    for row in rows_of(study, its_cells(study), "recall@1"):
        assert all(f"{100 * score:.1f}" in text for score in row.scores)


def test_the_page_asks_nobody_and_runs_nothing() -> None:
    page = page_of(a_study(), its_cells(a_study()))
    assert "<script" not in page and "default-src 'none'" in page
    links = re.findall(r'(?:href|src)="([^"#]+)', page)
    assert set(links) == {"data:,", "table.csv", "table.md", "table.tex"}
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))


def test_what_the_study_says_cannot_break_the_page() -> None:
    study = a_study(title="<b>&", question="<script>alert(1)</script>")
    assert "<script>alert" not in page_of(study, its_cells(study))


@pytest.mark.parametrize("seeds", [1, 2, 5])
def test_few_seeds_are_said_to_be_few(seeds: int) -> None:
    study = a_study(seeds, tuning_seeds=[0])
    page = page_of(study, its_cells(study))
    assert "claims about new seeds need 8 or more" in page
    assert "at the settings chosen; p speaks" not in page


def test_what_is_missing_is_named() -> None:
    study = a_study()
    cells = [c for c in its_cells(study) if c["seed"] < 5 and c["method"] != "so-sum"]
    (said, *_) = notes(study, cells)
    # 8 + 5 * 2 + 6 + 3 * 2 + 6 in all; there: 5, 4 * 2 + 5 and none
    assert said.startswith("18 of 36 cells are there, 10 of 24 judged on the test classes.")
    assert "Not yet: proxy-anchor_seed5, proxy-anchor_seed6, proxy-anchor_seed7, so-sum_weight-0.0001_seed0" in said
    assert said.endswith("and 6 more.")
    assert said in page_of(study, cells)
    assert "so-sum: not judged yet." in page_of(study, cells)
    assert notes(study, its_cells(study)) == []


def test_a_study_without_results_has_a_page() -> None:
    page = page_of(a_study(), [])
    assert "0 of 36 cells are there, 0 of 24 judged" in page and page.count("no score yet") == 6


def test_cells_that_failed_are_named_and_do_not_count() -> None:
    study = a_study()
    cells = its_cells(study)
    failed = next(c for c in cells if c["setting"] == {WEIGHT: 3} and c["seed"] == 1)
    nothing = {"validation": None, "test": None, "geometry": None, "curve": [], "seconds": None, "images": None}
    cells[cells.index(failed)] = {**failed, **nothing, "failed": "the loss is not a number"}
    (said,) = notes(study, cells)
    assert said.startswith(f"These cells could not be trained: {failed['cell']} (the loss is not a number).")
    (tried,) = [t for t in tried_settings(study, cells) if t.setting == f"{WEIGHT} 3"]
    assert (len(tried.scores), tried.missing, tried.failed) == (1, 0, 1)
    assert "1 failed" in page_of(study, cells)
    assert rows_of(study, cells, "recall@1") == rows_of(study, its_cells(study), "recall@1")


def test_test_scores_that_should_not_be_are_told() -> None:
    study = a_study()
    other = a_cell(study, "so-excess", {WEIGHT: 1}, 1, judged=True)
    cells = [*(c for c in its_cells(study) if c["cell"] != other["cell"]), other]
    assert notes(study, cells) == [
        f"Judged on the test classes without being chosen, and left out of the table: {other['cell']}."
    ]


def test_runs_that_only_got_worse_are_counted() -> None:
    study = a_study()
    cells = its_cells(study)
    for i in (1, 2):
        assert cells[i]["test"]
        worse = [{**point, "map@r": 0.4 - point["map@r"]} for point in cells[i]["curve"]]
        cells[i] = {**cells[i], "curve": worse}
    (said,) = notes(study, cells)
    assert said.startswith("2 of 24 judged runs were best on validation classes after their first epoch")


def test_a_second_training_is_told() -> None:
    study = a_study()
    cells = its_cells(study)
    cells[2] = {**cells[2], "trained_again": True}
    assert notes(study, cells) == [
        "On the test classes, a second training with the same configuration was judged of: proxy-anchor_seed2. "
        "What they show of validation classes, time and proxies is of the first."
    ]
    elsewhere = {"date": "2026-11-30", "environment": {"processor": "Apple M4"}}
    cells[2] = {**cells[2], "trained_again": elsewhere}
    page = page_of(study, cells)
    assert "AMD EPYC; Apple M4" in page and "2026-11-24 to 2026-11-30" in page


def test_training_that_did_harm_is_told() -> None:
    study = a_study()
    cells = its_cells(study)
    assert worse_than_untrained(rows_of(study, cells, "recall@1")) == ""
    for cell in cells:
        if cell["method"] == "so-sum" and cell["test"]:
            trained, untrained = (cell["test"][who] for who in ("trained", "untrained"))
            cell["test"] = {**cell["test"], "trained": untrained, "untrained": trained}
    (row,) = [row for row in rows_of(study, cells, "recall@1") if row.method == "so-sum"]
    assert row.gain is not None and row.gain.value == pytest.approx(row.mean.value - row.untrained)
    said = worse_than_untrained(rows_of(study, cells, "recall@1"))
    assert re.fullmatch(
        r"Worse than the untrained encoder with all its features, by Recall@1 on new classes: "
        r"so-sum \(lower by 20\.\d points \[1\d\.\d, 2\d\.\d\]\)\.",
        said,
    )
    assert said in page_of(study, cells)


def test_a_choice_by_few_classes_is_told() -> None:
    cells = its_cells(a_study())
    few = {name: values[:9] for name, values in cells[0]["validation"].items() if isinstance(values, list)}
    said = notes(a_study(), [*cells[1:], {**cells[0], "validation": {**cells[0]["validation"], **few}}])
    assert said == ["Only 9 validation classes chose settings and epochs: the choice is unreliable."]


def test_seconds_that_cannot_be_compared_are_told() -> None:
    study = a_study()
    cells = its_cells(study)
    assert not any("Compare methods by images" in note for note in notes(study, cells))
    busy = [cell | {"seconds": 300.0} if cell["cell"] == "proxy-anchor_seed3" else cell for cell in cells]
    (told,) = [note for note in notes(study, busy) if "Compare methods by images" in note]
    assert told.startswith("Runs of one method with one setting took from 130 to 300 seconds: ")
    assert all_rows(study, busy)["recall@1"][0].seconds < 140  # the median


def test_cells_of_different_precisions_are_told() -> None:
    cells = its_cells(a_study())
    cells[0] = {**cells[0], "environment": {"precision": "bf16-mixed"}}
    assert notes(a_study(), cells) == []  # the others do not tell
    cells[1] = {**cells[1], "environment": {"precision": "32-true"}}
    (said,) = notes(a_study(), cells)
    assert said.startswith("Cells were trained in different precisions: 1 in 32-true, 1 in bf16-mixed.")


@pytest.mark.parametrize("seeds", [3, 8])
def test_what_was_found_with_few_seeds_is_said_of_these(seeds: int, tmp_path: Path) -> None:
    study = a_study(seeds)
    (_, better), *_ = answers(rows_of(study, its_cells(study), "recall@1"), ["so-excess"])
    few = seeds < 8
    assert better.startswith("so-excess is better than proxy-anchor" + (" with these seeds:" if few else ":"))
    write_page(study, its_cells(study), tmp_path)
    said = "claims about new seeds need 8" if few else "Intervals speak of new classes and, with 8 seeds, of new seeds"
    assert said in (tmp_path / "table.md").read_text(encoding="utf-8")


def test_commands_name_the_folder_where_it_is_not_the_usual_one(tmp_path: Path) -> None:
    study = a_study()
    rows = all_rows(study, [])
    command = "orthoproxy study studies/made-up.yaml"
    usual = render_page(study, [], rows, Path("docs/studies/made-up"))
    assert f"{command}\n{command} --page" in usual
    assert f"{command} --results 'my results' --page" in html.unescape(render_page(study, [], rows, Path("my results")))


def test_a_frozen_encoder_is_said_to_be_frozen(tmp_path: Path) -> None:
    (tmp_path / "frozen.yaml").write_text("encoder: {freeze: true}\n")
    for study in (a_study(set={"encoder.freeze": True}), a_study(base=tmp_path / "frozen.yaml")):
        assert frozen_methods(study, []) == list(study.methods)
        cells = [{**cell, "options": cell["options"] | {"encoder.freeze": True}} for cell in its_cells(study)]
        assert "The encoder was frozen: its features stayed as they were" in page_of(study, cells)
    some = a_study(methods={**a_study().methods, "proxy-anchor": Method({"encoder.freeze": True})})
    assert "The encoder was frozen in proxy-anchor, and trained in the others." in notes(some, its_cells(some))[0]
    thawed = a_study(base=tmp_path / "frozen.yaml", set={"encoder.freeze": False})
    assert frozen_methods(thawed, []) == frozen_methods(a_study(), []) == []
    assert frozen_methods(a_study(base=tmp_path / "nowhere.yaml"), []) == []
    part = a_study(methods={"proxy-anchor": Method(recipe=tmp_path / "frozen.yaml")}, compare=[])
    assert frozen_methods(part, []) == ["proxy-anchor"]
    results = [{**cell, "options": {"encoder.freeze": cell["method"] == "so-sum"}} for cell in its_cells(a_study())]
    assert frozen_methods(a_study(), results) == ["so-sum"]


def test_answers_follow_the_corrected_p() -> None:
    study = a_study(4)
    excess = {WEIGHT: 0.3}
    methods = {**study.methods, "so-excess": Method(choose={WEIGHT: [0.3]})}
    study = a_study(4, methods=methods, tuning_seeds=[0])
    assert [kind for kind, _ in answers(rows_of(study, its_cells(study), "recall@1"), study.compare)] == [
        "better",
        "unclear",
    ]
    swapped = a_study(4, methods=methods, tuning_seeds=[0], baseline="so-excess", compare=["proxy-anchor"])
    ((kind, sentence),) = answers(rows_of(swapped, its_cells(swapped), "recall@1"), swapped.compare)
    assert kind == "worse" and "lower by" in sentence and MINUS not in sentence and "ahead with 0 of 4" in sentence
    assert excess == its_cells(study)[4]["setting"]


def test_a_difference_that_other_seeds_might_not_show_is_not_called_better() -> None:
    gain = Difference(Estimate(0.01, -0.002, 0.02), 0.001, [0.05, -0.03])
    row = Row("on", "recall@1", False, {}, difference=gain, p=0.001, holm_p=0.002)
    ((kind, sentence),) = answers([row], ["on"])
    assert kind == "unclear" and "not beyond these seeds" in sentence
    sure = replace(row, difference=replace(gain, estimate=Estimate(0.01, 0.002, 0.02)))
    assert answers([sure], ["on"])[0][0] == "better"
    assert answers([replace(sure, holm_p=0.2)], ["on"])[0][0] == "unclear"


def test_every_setting_is_listed_with_the_same_seeds_and_the_chosen_one_is_marked() -> None:
    study = a_study()
    tried = tried_settings(study, its_cells(study))
    assert [t.method for t in tried] == ["proxy-anchor"] + ["so-excess"] * 5 + ["so-sum"] * 3
    assert {len(t.scores) for t in tried} == {2}
    assert [t.setting for t in tried if t.chosen] == [f"{WEIGHT} 0", f"{WEIGHT} 0.3", f"{WEIGHT} 0.0001"]
    best = max((t for t in tried if t.method == "so-excess"), key=lambda t: t.mean)
    assert best.chosen
    cell = next(c for c in its_cells(study) if c["method"] == "proxy-anchor" and c["seed"] == 1)
    assert tried[0].scores[1] == score_of(cell, "validation", "recall@1")


def with_curve(cell: dict[str, Any], scores: list[float]) -> dict[str, Any]:
    points = [
        {"epoch": i, "seconds": 10.0 * i, "images": 100 * i, "recall@1": score, "map@r": score}
        for i, score in enumerate(scores, 1)
    ]
    return {**cell, "curve": points}


def test_speed_is_the_median_time_to_the_baselines_level() -> None:
    study = a_study(3, methods={"proxy-anchor": Method(), "so-sum": Method()}, compare=["so-sum"], tuning_seeds=[])
    plain = [a_cell(study, "proxy-anchor", {}, seed, judged=True) for seed in range(3)]
    summed = [a_cell(study, "so-sum", {}, seed, judged=True) for seed in range(3)]
    cells = [with_curve(cell, [0.2, 0.4, 0.6, 0.8]) for cell in plain]
    cells += [with_curve(cell, s) for cell, s in zip(summed, ([0.3, 0.5], [0.1, 0.2], [0.5, 0.1]), strict=True)]
    assert level_to_reach(study, cells) == pytest.approx(0.4)
    anchor, so = speeds(study, cells)
    assert (anchor.seconds, anchor.images, anchor.reached, anchor.seeds) == (
        pytest.approx(20),
        pytest.approx(200),
        3,
        3,
    )
    assert (so.seconds, so.reached, so.seeds) == (pytest.approx(15), 2, 3)  # of 10, 15 and never
    assert anchor.fewer is None and so.fewer is None
    assert math.isinf(speeds(study, [*cells[:3], cells[4]])[1].seconds)


def test_images_are_compared_with_those_of_the_same_seed() -> None:
    study = a_study(3, methods={"proxy-anchor": Method(), "so-sum": Method()}, compare=["so-sum"], tuning_seeds=[])
    curves = {"proxy-anchor": ([0.2, 0.4], [0.1, 0.2, 0.4], [0.4]), "so-sum": ([0.4], [0.4], [0.2, 0.4])}
    cells = [
        with_curve(a_cell(study, name, {}, seed, judged=True), curve)
        for name, several in curves.items()
        for seed, curve in enumerate(several)
    ]
    level = level_to_reach(study, cells)
    times = [[100 * np.interp(level, curve, range(1, len(curve) + 1)) for curve in curves[name]] for name in curves]
    known = stats.ttest_rel(times[0], times[1])  # np.interp takes the first epoch for a curve that starts above, too
    interval = known.confidence_interval(0.95)
    _, so = speeds(study, cells)
    assert so.fewer == pytest.approx((np.subtract(*times).mean(), interval.low, interval.high))
    shown = f"{so.fewer[0]:,.0f} <span>[{so.fewer[1]:,.0f}, {so.fewer[2]:,.0f}]</span>".replace("-", MINUS)
    assert shown in page_of(study, cells)


def test_figures_show_the_numbers_of_the_table() -> None:
    study = a_study()
    cells = its_cells(study)
    rows, looks = rows_of(study, cells, "recall@1"), figures.looks_of(study)
    (axes,) = figures.scores_figure(rows, looks).axes
    drawn = {round(float(x), 6) for line in axes.lines for x in np.atleast_1d(line.get_xdata())}
    assert {round(100 * score, 6) for row in rows for score in row.scores} <= drawn
    assert {round(100 * row.mean.value, 6) for row in rows if row.mean} <= drawn
    (axes,) = figures.setting_figure(study, cells, WEIGHT).axes
    means = [round(100 * t.mean, 6) for t in tried_settings(study, cells)]
    drawn = {round(float(y), 6) for line in axes.lines for y in np.atleast_1d(line.get_ydata())}
    assert set(means) <= drawn
    assert axes.get_xscale() == "log"


def test_the_axis_of_settings_has_a_place_for_zero_and_for_words() -> None:
    with_zero = a_study(
        methods={**a_study().methods, "so-excess": Method(choose={WEIGHT: [0, *WEIGHTS]})}, baseline="so-sum"
    )
    assert figures.setting_figure(with_zero, [], WEIGHT).axes[0].get_xscale() == "symlog"
    words = a_study(methods={"proxy-anchor": Method(choose={"encoder.name": ["b", "a"]})}, compare=[])
    (axes,) = figures.setting_figure(words, [], "encoder.name").axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["b", "a"]
    near = a_study(methods={"proxy-anchor": Method(choose={"training.per_class": [2, 4, 8]})}, compare=[])
    assert figures.setting_figure(near, [], "training.per_class").axes[0].get_xscale() == "linear"


def test_geometry_is_of_all_cells_with_proxies() -> None:
    study = a_study()
    cells = its_cells(study)
    x, y = figures.geometry_points(cells, "recall@1", "distance")
    assert len(x) == len(y) == len(cells) == 36
    first = cells[0]["geometry"]
    assert x[0] == pytest.approx((first["squares"] - first["floor"]) / 300)
    without = [{**cell, "geometry": None} for cell in cells]
    assert "Proxies and scores" not in page_of(study, without)
    assert "36 cells; rank correlation" in page_of(study, cells)


def test_many_methods_can_be_told_apart() -> None:
    study = a_study(methods={f"method-{i}": Method() for i in range(17)}, baseline="method-0", compare=[])
    assert len(set(figures.looks_of(study).values())) == 17


def test_tables_stand_beside_the_page(tmp_path: Path) -> None:
    study = a_study()
    write_page(study, its_cells(study), tmp_path)
    markdown = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert markdown.startswith("# Does Soft Orthogonality help on icons?\n")
    assert "judged once" in markdown and "## MAP@R" in markdown
    latex = (tmp_path / "table.tex").read_text(encoding="utf-8")
    assert "judged once" in latex and "with 8 seeds" in latex
    assert len((tmp_path / "table.csv").read_text(encoding="utf-8").splitlines()) == 7


@pytest.mark.slow
@pytest.mark.parametrize("path", KEPT, ids=lambda path: path.stem)
def test_a_page_that_is_kept_says_what_its_cells_say_now(path: Path, tmp_path: Path) -> None:
    study, kept = read_study(path), PAGES / path.stem
    cells = [json.loads(cell.read_text(encoding="utf-8")) for cell in (kept / "cells").iterdir()]
    write_page(study, cells, tmp_path)
    assert (tmp_path / "table.md").read_text(encoding="utf-8") == (kept / "table.md").read_text(encoding="utf-8")


def test_a_folder_that_cannot_be_is_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="give another path"):
        write_page(a_study(), [], tmp_path / "file/below")


def test_the_recipe_of_the_made_up_study_exists() -> None:
    assert (ROOT / "recipes/icons.yaml").exists()  # or frozen_methods would not have read it
