"""Methods side by side: rows against the statistics, what is missing, and the three files."""

from __future__ import annotations

import csv
import io
import math
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from synthetic_study import WEIGHT, a_cell, a_study, its_cells

from orthoproxy.core.errors import InputError
from orthoproxy.evaluation import Estimate
from orthoproxy.reports.text import MINUS
from orthoproxy.studies.comparison import Row, judged_results, matrix_of, rows_of
from orthoproxy.studies.page import all_rows, render_page
from orthoproxy.studies.plan import Method
from orthoproxy.studies.statistics import compare, holm, mean_score
from orthoproxy.studies.table import DASH, as_csv, as_latex, as_markdown, displayed, frame_of
from orthoproxy.studies.words import answers


def test_a_row_holds_what_the_statistics_say_of_the_chosen_setting() -> None:
    study = a_study()
    cells = its_cells(study)
    plain, excess, summed = rows_of(study, cells, "recall@1")
    of = {name: [c for c in cells if c["method"] == name and c["test"]] for name in study.methods}
    ours, queries = matrix_of(of["so-excess"], "recall@1")
    theirs, _ = matrix_of(of["proxy-anchor"], "recall@1")
    assert ours.shape == (8, 60)
    assert excess.setting == {WEIGHT: 0.3} and excess.seeds == list(range(8))
    assert excess.mean == mean_score(ours, queries)
    assert excess.scores == pytest.approx((ours * queries).sum(axis=1) / queries.sum())
    assert excess.deviation == pytest.approx(np.std(excess.scores, ddof=1))
    assert excess.difference == compare(ours, theirs, queries)
    assert excess.difference.estimate.value == pytest.approx(0.06, abs=0.02)  # what was planted
    assert excess.untrained == pytest.approx(
        np.average(of["so-excess"][0]["test"]["untrained"]["recall@1"], weights=queries)
    )
    assert excess.seconds == pytest.approx(133.7) and excess.images == 23552
    assert [excess.holm_p, summed.holm_p] == holm([excess.difference.p, summed.difference.p])
    assert (excess.p, summed.p) == (excess.difference.p, summed.difference.p)
    assert plain.baseline and plain.difference is None and math.isnan(plain.p)


def test_a_method_is_compared_with_what_it_names() -> None:
    study = a_study()
    methods = study.methods | {"so-sum": replace(study.methods["so-sum"], against="so-excess")}
    study = replace(study, methods=methods)
    cells = its_cells(study)
    plain, excess, summed = rows_of(study, cells, "recall@1")
    assert (plain.against, excess.against, summed.against) == ("", "", "so-excess")
    ours, queries = matrix_of([c for c in cells if c["method"] == "so-sum" and c["test"]], "recall@1")
    theirs, _ = matrix_of([c for c in cells if c["method"] == "so-excess" and c["test"]], "recall@1")
    assert summed.difference == compare(ours, theirs, queries)
    assert displayed(summed)["method"] == "so-sum (against so-excess)"
    assert frame_of([plain, summed])["against"].tolist() == ["", "so-excess"]
    said = [sentence for _, sentence in answers([plain, excess, summed], study.compare)]
    assert said[0].startswith("so-excess is better than proxy-anchor: ")
    assert said[1].startswith("so-sum is worse than so-excess: ")
    html = render_page(study, cells, all_rows(study, cells))
    assert "against so-excess · " in html and "Against proxy-anchor, or what the table names" in html


def test_only_comparisons_named_before_and_by_the_named_metric_get_p() -> None:
    study = a_study(compare=["so-excess"])
    cells = its_cells(study)
    _, excess, summed = rows_of(study, cells, "recall@1")
    assert excess.holm_p == excess.p  # alone in its family
    assert summed.difference is not None and math.isnan(summed.p) and math.isnan(summed.holm_p)
    for row in rows_of(study, cells, "map@r"):
        assert math.isnan(row.p) and math.isnan(row.holm_p)


def test_a_row_speaks_of_what_is_there() -> None:
    study = a_study()
    cells = [c for c in its_cells(study) if c["method"] != "so-sum" and (c["method"] != "so-excess" or c["seed"] < 3)]
    plain, excess, summed = rows_of(study, cells, "recall@1")
    assert (len(plain.seeds), len(excess.seeds), summed.seeds) == (8, 3, [])
    assert excess.difference is not None and len(excess.difference.by_seed) == 3
    assert excess.holm_p == pytest.approx(min(1, 2 * excess.p))  # so-sum still counts among the comparisons
    assert displayed(summed)["Recall@1"] == displayed(summed)["p"] == DASH
    assert rows_of(study, [], "recall@1")[0].mean is None


def test_differences_are_of_seeds_that_both_have() -> None:
    study = a_study()
    cells = [c for c in its_cells(study) if not (c["method"] == "proxy-anchor" and c["seed"] in (0, 5))]
    excess = rows_of(study, cells, "recall@1")[1]
    assert len(excess.seeds) == 8 and excess.difference is not None and len(excess.difference.by_seed) == 6
    without = [c for c in cells if c["test"] and c["seed"] not in (0, 5)]
    ours, queries = matrix_of([c for c in without if c["method"] == "so-excess"], "recall@1")
    theirs, _ = matrix_of([c for c in without if c["method"] == "proxy-anchor"], "recall@1")
    assert excess.difference == compare(ours, theirs, queries)


def test_no_score_on_test_classes_before_a_setting_is_chosen() -> None:
    study = a_study()
    cells = [c for c in its_cells(study) if not (c["setting"] == {WEIGHT: 3} and c["seed"] == 1)]
    assert judged_results(study, cells, "so-excess") == []
    assert judged_results(study, its_cells(study), "so-excess") != []


def test_scores_of_a_setting_that_was_not_chosen_do_not_count() -> None:
    study = a_study()
    other = a_cell(study, "so-excess", {WEIGHT: 1}, 1, judged=True)
    cells = [c for c in its_cells(study) if c["cell"] != other["cell"]]
    assert rows_of(study, [*cells, other], "recall@1") == rows_of(study, its_cells(study), "recall@1")


def test_results_of_different_test_classes_are_refused() -> None:
    study = a_study()
    cells = its_cells(study)
    cells[3] = {**cells[3], "test": {**cells[3]["test"], "queries": [1] * 60}}
    with pytest.raises(InputError, match=r"seed0 and .*seed3 were scored on different test classes"):
        rows_of(study, cells, "recall@1")


def test_a_study_of_one_method_needs_no_comparison() -> None:
    study = a_study(methods={"proxy-anchor": Method()}, compare=[])
    cells = [a_cell(study, "proxy-anchor", {}, seed, judged=True) for seed in study.seeds]
    (row,) = rows_of(study, cells, "recall@1")
    assert row.mean is not None and row.difference is None


def test_csv_holds_the_numbers() -> None:
    study = a_study()
    rows = [*rows_of(study, its_cells(study), "recall@1"), *rows_of(study, its_cells(study), "map@r")]
    read = pd.read_csv(io.StringIO(as_csv(rows)))
    assert read["method"].tolist() == [*study.methods] * 2
    assert read["mean"].to_numpy() == pytest.approx([100 * row.mean.value for row in rows if row.mean], abs=1e-4)
    assert [len(scores.split()) for scores in read["scores"]] == [8] * 6
    assert read["p_holm"].notna().tolist() == [False, True, True, False, False, False]
    assert read["chosen_on"].fillna("").tolist() == ["", "validation classes", "validation classes"] * 2
    assert set(read["judged_on"]) == {"test classes"}
    assert next(csv.reader(io.StringIO(as_csv(rows)))) == list(frame_of(rows).columns)


def test_markdown_and_latex_hold_the_same_cells() -> None:
    study = a_study()
    rows = rows_of(study, its_cells(study), "recall@1")
    lines = as_markdown(rows).splitlines()
    assert {line.count("|") for line in lines} == {15}
    latex = as_latex(rows, "caption")
    for row in rows:
        shown = displayed(row)
        assert all(text in "\n".join(lines) for text in shown.values())
        assert all(
            text.replace("_", r"\_").replace(MINUS, "$-$").replace(DASH, "--") in latex for text in shown.values()
        )
    body = [line for line in latex.splitlines() if line.endswith(r"\\") and "multicolumn" not in line]
    assert {line.count("&") for line in body} == {11}
    assert latex.index(r"\toprule") < latex.index(r"\midrule") < latex.index(r"\bottomrule")
    assert latex.count("{") == latex.count("}")


def test_what_a_method_has_in_any_case_is_shown_beside_what_was_chosen() -> None:
    given, chosen = {"loss.orthogonality.scaling": "excess"}, {"loss.orthogonality.weight": 0.3}
    text = "loss.orthogonality.scaling excess, loss.orthogonality.weight 0.3"
    assert displayed(Row("on", "recall@1", False, chosen, given=given))["setting"] == text
    assert displayed(Row("on", "recall@1", False, {}, given=given))["setting"] == "loss.orthogonality.scaling excess"
    assert displayed(Row("on", "recall@1", False, None, given=given))["setting"] == "", "not chosen yet"


def test_names_cannot_break_the_tables() -> None:
    row = Row("a|b_c&d%e#f$g{h}~^\\", "recall@1", False, {"x_y": "1|2"}, [0], [0.5], Estimate(0.5, 0.4, 0.6))
    assert len(re.findall(r"(?<!\\)\|", as_markdown([row]).splitlines()[2])) == 15
    latex = as_latex([row], "100 %")
    assert re.findall(r"(?<!\\)[%#_]", latex) == []
    assert r"a|b\_c\&d\%e\#f\$g\{h\}" in latex


def test_every_seed_is_listed_and_many_are_in_the_csv_alone() -> None:
    few = Row("m", "recall@1", False, {}, [0, 1], [0.51, 0.52], Estimate(0.5, 0.4, 0.6))
    assert displayed(few)["each seed"] == "51.0 52.0"
    many = replace(few, seeds=list(range(100)), scores=[0.5] * 100)
    assert displayed(many)["each seed"] == "in table.csv"
    assert frame_of([many])["scores"][0].count("50.0") == 100
