"""Study files, the trials they stand for, and the choice of a setting."""

from pathlib import Path

import numpy as np
import pytest
from errors import error_of
from hypothesis import given
from hypothesis import strategies as st
from synthetic_study import GIVEN, WEIGHT, make_failure, make_result, write_study

from orthoproxy.studies.plan import SEED, Method, Study, Trial, choose_setting, final_results, read_study
from orthoproxy.studies.results import SplitScores


def make_plan(**changes) -> Study:
    methods = {"off": Method(), "on": Method(choose={WEIGHT: [1, 2, 3]})}
    return Study(**{**GIVEN, "path": Path("s.yaml"), "methods": methods, **changes})


def test_a_study_is_read_from_its_file(tmp_path):
    study = read_study(write_study(tmp_path, set={"epochs": 2, WEIGHT: 5}, question=None, seeds=3))
    assert (study.name, study.title, study.question) == ("s", "Does it help?", "")
    assert study.base == tmp_path / "base.yaml"
    assert (study.seeds, study.tuning_seeds, study.compare) == ([0, 1, 2], [0, 1], ["on"])
    assert study.methods["on"].settings == [{WEIGHT: 0.1}, {WEIGHT: 1}, {WEIGHT: 9}]
    assert study.methods["off"].settings == [{}]
    assert study.options(Trial("on", {WEIGHT: 1}, 7)) == {"epochs": 2, WEIGHT: 1, SEED: 7}
    assert Method(choose={"a": [1, 2], "b": [3]}).settings == [{"a": 1, "b": 3}, {"a": 2, "b": 3}]


def test_values_that_do_not_fit_a_file_name_are_hashed():
    names = {Trial("on", {"classes": [value]}, 0).name for value in ("a/b", "a/c")}
    assert len(names) == 2 and all("/" not in name for name in names)


@pytest.mark.parametrize(("changes", "field"), [
    ({"color": "red"}, "color"), ({"seeds": 0}, "seeds"), ({"seeds": [1, 1]}, "seeds"),
    ({"baseline": "of"}, "baseline"), ({"compare": ["off"]}, "baseline"), ({"compare": ["on", "on"]}, "compare"),
    ({"compare": ["no"]}, "compare.0"), ({"set": {SEED: 1}}, f"set.{SEED}"),
    ({"methods": {"off": {"choose": {SEED: [1]}}}}, f"methods.off.choose.{SEED}"),
    ({"methods": {"off": {"choose": {WEIGHT: []}}}}, f"methods.off.choose.{WEIGHT}"),
    ({"methods": {"off": {"choose": {WEIGHT: [1, 1.0]}}}}, f"methods.off.choose.{WEIGHT}"),
    ({"methods": {"off": {}, "on": {"against": "no"}}}, "methods.on.against"),
    ({"methods": {"off": {}, "on": {"against": "on"}}}, "methods"),
    ({"methods": {"off": {"against": "on"}, "on": {}}, "compare": []}, "baseline"),
    ({"methods": {"off": {}, "on": {"choose": {"b": [1]}}, "on_b-1": {}}}, "methods"),
])  # fmt: skip
def test_a_wrong_study_names_the_field(tmp_path, changes, field):
    path = write_study(tmp_path, **changes)
    error = error_of(read_study, path)
    assert (error.field, error.path) == (field, path)


def one_class(score: float, name: str = "a") -> SplitScores:
    scores = {"recall@1": [score], "map@r": [0.0]}
    return SplitScores(classes=[name], queries=[9], trained=scores, untrained=scores)


def tuned(study: Study, scores: dict[int, tuple[float, ...]]) -> list:
    """Results of the method "on" by weight and seed."""
    return [
        make_result(study, Trial("on", {WEIGHT: weight}, seed), evaluated=False, validation=one_class(score))
        for weight, by_seed in scores.items()
        for seed, score in enumerate(by_seed)
    ]


def test_the_best_mean_over_the_tuning_seeds_is_chosen():
    study = make_plan()
    assert choose_setting(study, tuned(study, {1: (0.9, 0.1), 2: (0.6, 0.6), 3: (0.5, 0.6)}), "on") == {WEIGHT: 2}
    other_seeds = {1: (0.9, 0.1, 1.0), 2: (0.6, 0.6, 0.0), 3: (0.5, 0.6)}
    assert choose_setting(study, tuned(study, other_seeds), "on") == {WEIGHT: 2}
    ties = {1: (0.1, 0.1), 2: (0.6, 0.6), 3: (0.6, 0.6)}
    assert choose_setting(study, tuned(study, ties), "on") == {WEIGHT: 2}
    assert choose_setting(study, [], "off") == {}


def test_a_setting_that_failed_once_is_not_chosen_and_none_while_a_result_is_missing():
    study = make_plan()
    results = tuned(study, {1: (0.9, 0.9), 2: (0.6, 0.6), 3: (0.5, 0.6)})
    assert choose_setting(study, results[:-1], "on") is None
    results[0] = make_failure(study, Trial("on", {WEIGHT: 1}, 0))
    assert choose_setting(study, results, "on") == {WEIGHT: 2}
    failures = [make_failure(study, Trial(r.method, r.setting, r.seed)) for r in results]
    assert choose_setting(study, failures, "on") is None


def test_scores_of_different_classes_are_not_compared():
    study = make_plan()
    results = tuned(study, {1: (0.9, 0.9), 2: (0.6, 0.6), 3: (0.5, 0.6)})
    results[3] = results[3].model_copy(update={"validation": one_class(0.6, "b")})
    assert "different validation classes" in str(error_of(choose_setting, study, results, "on"))


def test_final_results_are_those_of_the_chosen_setting_in_the_order_of_the_seeds():
    study = make_plan(seeds=[1, 0])
    results = tuned(study, {1: (0.1, 0.1), 2: (0.6, 0.6), 3: (0.5, 0.6)})
    evaluated = [result.model_copy(update={"test": one_class(0.5)}) for result in results]
    assert [r.trial for r in final_results(study, evaluated, "on")] == ["on_weight-2_seed1", "on_weight-2_seed0"]
    assert final_results(study, results, "on") == []


@given(st.lists(st.tuples(st.integers(1, 50), st.floats(0, 1)), min_size=1))
def test_a_score_is_the_mean_over_queries(classes):
    queries, values = [n for n, _ in classes], [x for _, x in classes]
    scores = {"recall@1": values, "map@r": values}
    split = SplitScores(classes=[*map(str, values)], queries=queries, trained=scores, untrained=scores)
    result = make_result(make_plan(), Trial("off", {}, 0), evaluated=False, test=split)
    assert result.score("test", "map@r") == pytest.approx(np.repeat(values, queries).mean())
