"""Methods side by side: scores, differences and p values against their definitions."""

import math

import numpy as np
import pytest
from synthetic_study import WEIGHT, best_setting, finished_results, make_failure, make_study

from orthoproxy.studies.statistics import compare, holm
from orthoproxy.studies.table import notes, summarize_methods, to_cells


@pytest.fixture(scope="module")
def study():
    return make_study()


@pytest.fixture(scope="module")
def results(study):
    return finished_results(study)


def test_cells_have_no_column_that_is_empty_in_all_rows(study, results):
    own, other = (to_cells(summarize_methods(study, results, metric)) for metric in ("recall@1", "map@r"))
    assert {"p", "p (Holm)", "difference", "MAP@R"} - own[0].keys() == {"MAP@R"}
    assert {"p", "p (Holm)", "difference", "MAP@R"} & other[0].keys() == {"difference", "MAP@R"}  # MAP@R is not tested
    assert all(row.keys() == own[0].keys() for row in own)
    assert own[0]["difference"] == "\N{EN DASH}"  # of the baseline, but not of all


def test_summaries_are_means_over_all_queries_of_the_chosen_setting(study, results):
    rows = summarize_methods(study, results, "recall@1")
    assert [row.method for row in rows] == list(study.methods)
    assert rows[1].options == study.methods["so-excess"].set | {WEIGHT: 0.3}
    for row in rows:
        finals = {t.name for t in study.final_trials(row.method, best_setting(study, row.method))}
        tests = [result.test for result in results if result.trial in finals]
        scores = [np.repeat(test.trained["recall@1"], test.queries).mean() for test in tests]
        assert row.seeds == study.seeds
        assert row.scores == pytest.approx(scores)
        assert row.mean.value == pytest.approx(np.mean(scores))
        assert row.deviation == pytest.approx(np.std(scores, ddof=1))
        untrained = [np.repeat(test.untrained["recall@1"], test.queries).mean() for test in tests]
        assert row.untrained.value == pytest.approx(np.mean(untrained))
        assert row.untrained.low < row.untrained.value < row.untrained.high
        assert row.gain.value == pytest.approx(np.mean(scores) - np.mean(untrained))


def test_differences_are_paired_and_p_values_corrected_over_the_planned_comparisons(study, results):
    rows = summarize_methods(study, results, "recall@1")
    baseline = [result for result in results if result.method == "proxy-anchor"]
    for row in rows[1:]:
        finals = [t.name for t in study.final_trials(row.method, best_setting(study, row.method))]
        tested = [next(r for r in results if r.trial == name) for name in finals]
        matrices = [np.array([r.test.trained["recall@1"] for r in group]) for group in (tested, baseline)]
        assert row.difference == compare(*matrices, np.array(baseline[0].test.queries))
        assert row.p == row.difference.p
    assert [row.holm_p for row in rows[1:]] == holm([row.p for row in rows[1:]])
    assert math.isnan(rows[0].p)
    others = summarize_methods(study, results, "map@r")
    assert others[1].difference is not None
    assert all(math.isnan(row.p) for row in others)


def test_a_missing_comparison_counts_in_the_correction(study, results):
    some = [result for result in results if result.method != "so-sum"]
    _, excess, missing = summarize_methods(study, some, "recall@1")
    assert excess.holm_p == pytest.approx(min(1, 2 * excess.p))
    assert missing.mean is missing.difference is None
    assert math.isnan(missing.holm_p)


def test_a_method_may_be_compared_with_another_over_shared_seeds(results):
    methods = make_study().methods
    methods["so-sum"] = methods["so-sum"].model_copy(update={"against": "so-excess"})
    study = make_study(methods=methods)
    some = [r for r in results if not (r.method == "so-excess" and r.seed == 7)]
    rows = {row.method: row for row in summarize_methods(study, some, "recall@1")}
    assert len(rows["so-sum"].difference.by_seed) == 7
    expected = np.array(rows["so-sum"].scores[:7]) - rows["so-excess"].scores
    assert rows["so-sum"].difference.by_seed == pytest.approx(expected)


def test_notes_name_what_is_missing_failed_and_repeated(study, results):
    assert notes(study, results) == []
    changed = [r for r in results if r.trial != "proxy-anchor_seed5"]
    changed[0] = make_failure(study, study.possible_trials[changed[0].trial])
    untested, again, mixed = (i for i, r in enumerate(changed) if r.method == "proxy-anchor" and r.seed in (1, 2, 3))
    changed[untested] = changed[untested].model_copy(update={"test": None})
    changed[again] = changed[again].model_copy(update={"retrained": {"date": "2026-11-25", "environment": {}}})
    changed[mixed] = changed[mixed].model_copy(update={"environment": {"precision": "bf16-mixed"}})
    found = notes(study, changed)
    for name in ("proxy-anchor_seed5", changed[0].trial, *(changed[i].trial for i in (untested, again)), "bf16-mixed"):
        assert sum(name in note for note in found) == 1
