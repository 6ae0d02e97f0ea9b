"""Study files: what they say, what is refused, and how a setting is chosen."""

import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from orthoproxy.core.errors import InputError
from orthoproxy.studies.plan import Cell, Method, Study, chosen_setting, score_of
from orthoproxy.studies.study_file import read_study

WEIGHT = "loss.orthogonality.weight"
GIVEN = {
    "title": "Does it help?",
    "base": "../recipes/icons.yaml",
    "seeds": 3,
    "tuning_seeds": [0, 1],
    "metric": "recall@1",
    "baseline": "off",
    "compare": ["on"],
    "methods": {"off": {"set": {WEIGHT: 0}}, "on": {"choose": {WEIGHT: [0.1, 1]}}},
}


def written(folder: Path, **changes) -> Path:
    path = folder / "helps.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in (GIVEN | changes).items() if value != "missing"}))
    return path


def test_a_study_is_what_its_file_says(tmp_path):
    study = read_study(written(tmp_path, set={"training.epochs": 2}, question="Does it?"))
    assert (study.name, study.title, study.question) == ("helps", "Does it help?", "Does it?")
    assert study.base == tmp_path / "../recipes/icons.yaml"
    assert (study.seeds, study.tuning_seeds, study.compare) == ([0, 1, 2], [0, 1], ["on"])
    assert study.methods["on"].settings == [{WEIGHT: 0.1}, {WEIGHT: 1}]
    assert study.methods["off"].settings == [{}]
    assert study.options(Cell("on", {WEIGHT: 1}, 7)) == {"training.epochs": 2, WEIGHT: 1, "training.seed": 7}


def test_later_options_override_earlier_ones():
    method = Method(set={"a": 2, "b": 2}, choose={"b": [3]})
    study = Study("s", {"m": method}, "m", set={"a": 1, "b": 1, "c": 1})
    assert study.options(Cell("m", {"b": 3}, 0)) == {"a": 2, "b": 3, "c": 1, "training.seed": 0}


def test_every_setting_runs_with_the_tuning_seeds_and_one_with_all(tmp_path):
    study = read_study(written(tmp_path, seeds=[1, 2], tuning_seeds=[0, 1]))
    first = [(cell.method, cell.setting, cell.seed) for cell in study.first_cells]
    tuned = [("on", {WEIGHT: weight}, seed) for weight in (0.1, 1) for seed in (0, 1)]
    assert first == [("off", {}, 1), ("off", {}, 2), *tuned]
    assert study.later_cells("on", {WEIGHT: 1}) == [Cell("on", {WEIGHT: 1}, 2)]
    assert study.judged_cells("on", {WEIGHT: 1}) == [Cell("on", {WEIGHT: 1}, seed) for seed in (1, 2)]
    assert study.later_cells("off", {}) == []


def test_a_grid_is_every_combination():
    settings = Method(choose={"a": [1, 2], "b": ["x", "y"]}).settings
    assert settings == [{"a": a, "b": b} for a in (1, 2) for b in ("x", "y")]


def test_numbers_in_scientific_notation_are_numbers(tmp_path):
    path = written(tmp_path)
    path.write_text(path.read_text().replace("- 0.1\n", "- 1e-3\n"))
    assert read_study(path).methods["on"].settings[0] == {WEIGHT: 0.001}


def test_a_part_of_a_recipe_is_found_from_the_study(tmp_path):
    (tmp_path / "arcface.yaml").write_text("loss: {name: ArcFaceLoss}")
    study = read_study(written(tmp_path, methods={"off": {"recipe": "arcface.yaml"}}, compare=[]))
    assert study.methods["off"].recipe == tmp_path / "arcface.yaml"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"colour": "red"}, "the study: unknown key 'colour'; there are base, "),
        ({"base": "missing"}, "base: missing"),
        ({"base": None}, "base: None; give a recipe"),
        ({"title": ""}, "title: ''; give a heading"),
        ({"metric": "recall@7"}, "metric: unknown 'recall@7'; one of recall@1, map@r"),
        ({"seeds": []}, "seeds: []; give a list of different whole numbers"),
        ({"seeds": 0}, "seeds: 0; give a list"),
        ({"seeds": True}, "seeds: True; give a list"),
        ({"seeds": "many"}, "seeds: 'many'; give a list"),
        ({"seeds": [1, 1]}, "seeds: [1, 1]; give a list"),
        ({"seeds": [-1]}, "seeds: [-1]; give a list"),
        ({"tuning_seeds": [0.5]}, "tuning_seeds: [0.5]; give a list"),
        ({"tuning_seeds": "missing"}, "tuning_seeds: missing; a setting is chosen by runs"),
        ({"baseline": "of"}, "baseline: there is no method 'of'; there are off, on"),
        ({"compare": ["onn"]}, "compare: there is no method 'onn'"),
        ({"compare": ["off"]}, "compare: 'off' is the baseline itself"),
        ({"compare": ["on", "on"]}, "compare: a method comes twice"),
        ({"compare": "on"}, "compare: 'on'; give a list of methods"),
        ({"expected_seconds": "long"}, "expected_seconds: 'long'; give the seconds"),
        ({"expected_seconds": 0}, "expected_seconds: 0; give the seconds"),
        ({"expected_seconds": float("nan")}, "expected_seconds: nan; give the seconds"),
        ({"expected_seconds": float("inf")}, "expected_seconds: inf; give the seconds"),
        ({"methods": {"off": {"against": "on"}, "on": {}}}, "methods.off.against: it is the baseline"),
        ({"methods": {}}, "methods: none"),
        ({"methods": ["off"]}, "methods: ['off']; give keys and values"),
        ({"methods": {"../off": {}}}, "methods: the name '../off' cannot be one of a file"),
        ({"methods": {"off": {"sets": {}}}}, "methods.off: unknown key 'sets'; there are against, choose, recipe, set"),
        ({"methods": {"off": {"choose": {WEIGHT: 1}}}}, f"methods.off.choose.{WEIGHT}: 1; give a list"),
        ({"methods": {"off": {"choose": {WEIGHT: []}}}}, f"methods.off.choose.{WEIGHT}: []; give a list"),
        ({"methods": {"off": {"choose": {WEIGHT: [1, 1]}}}}, "methods.off.choose: a value comes twice"),
        ({"methods": {"off": {"against": "of"}, "on": {}}}, "methods.off.against: 'of'; give another method: on"),
        ({"methods": {"off": {"against": "off"}, "on": {}}}, "methods.off.against: 'off'; give another method: on"),
        ({"methods": {"off": {"against": ["on"]}, "on": {}}}, "methods.off.against: ['on']; give another method: on"),
        ({"methods": {"off": {"recipe": "no.yaml"}}}, "methods.off.recipe: no file"),
        ({"methods": {"off": {"recipe": "x" * 5000}}}, "methods.off.recipe: no file"),
        ({"methods": {"off": 0}}, "methods.off: 0; give keys and values"),
        ({"methods": {"off": []}}, "methods.off: []; give keys and values"),
        ({"set": {"training.seed": 5}}, "set.training.seed: a cell has its seed from seeds"),
        ({"methods": {"off": {"set": {"training.seed": 5}}}}, "methods.off.set.training.seed: a cell has its seed"),
        ({"methods": {"off": {"choose": {"training.seed": [5]}}}}, "methods.off.choose.training.seed: a cell has its"),
        (
            {"methods": {"off": {"choose": {WEIGHT: [1]}}, "off_weight-1": {}}},
            "methods: off and off_weight-1 both have a cell off_weight-1_seed0; give one another name",
        ),
    ],
)
def test_what_cannot_be_is_named(tmp_path, changes, message):
    if "methods" in changes:
        changes = {"compare": [], **changes}
    path = written(tmp_path, **changes)
    with pytest.raises(InputError, match=re.escape(message)) as error:
        read_study(path)
    assert str(error.value).startswith(f"{path}: ")


def test_a_method_named_twice_is_refused(tmp_path):
    path = written(tmp_path)
    path.write_text(path.read_text().replace("  'on':\n", f"  'on':\n    set: {{{WEIGHT}: 3}}\n  'on':\n"))
    with pytest.raises(InputError, match=r"the key 'on' is there already; keep one"):
        read_study(path)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"a: [", b"- a list\n"])
def test_what_is_no_study_is_named(tmp_path, content):
    (tmp_path / "helps.yaml").write_bytes(content)
    with pytest.raises(InputError, match=r"helps\.yaml: "):
        read_study(tmp_path / "helps.yaml")


@given(
    st.lists(
        st.dictionaries(
            st.sampled_from(["loss.args.a", "loss.args.b"]),
            st.one_of(
                st.integers(0, 99), st.floats(0, 9), st.text(max_size=80).map("{}!".format), st.none(), st.booleans()
            ),
        ),
        unique_by=lambda setting: repr(sorted(setting.items())),
        max_size=20,
    )
)
def test_names_of_cells_are_those_of_files_and_differ(settings):
    names = [Cell("m", setting, 0).name for setting in settings]
    assert len(set(names)) == len(settings)
    assert all(re.fullmatch(r"[\w.+-]{1,80}", name) for name in names)


def result(setting, seed, score, **more):
    scores = {"classes": ["a", "b"], "queries": [1, 1], "trained": {"recall@1": [score, score]}}
    return {"cell": Cell("on", setting, seed).name, "validation": scores, **more}


@pytest.fixture
def study():
    return Study("s", {"on": Method(choose={WEIGHT: [1, 2, 3]})}, "on", tuning_seeds=[0, 1])


def results_of(scores):
    return [result({WEIGHT: w}, seed, x) for w, of_seeds in scores.items() for seed, x in enumerate(of_seeds)]


def test_the_best_mean_over_the_tuning_seeds_is_chosen(study):
    assert chosen_setting(study, results_of({1: (0.9, 0.1), 2: (0.6, 0.6), 3: (0.5, 0.6)}), "on") == {WEIGHT: 2}


@given(st.lists(st.integers(0, 9), min_size=2, max_size=9), st.randoms())
def test_of_settings_with_as_many_hits_the_first_is_chosen(hits, shuffling):
    """Scores of classes are kept with six digits, of which the sum depends on which class has the hits."""
    study = Study("s", {"on": Method(choose={WEIGHT: [1, 2]})}, "on", tuning_seeds=[0])
    others = shuffling.sample(hits, len(hits))
    scored = [
        {
            "cell": Cell("on", {WEIGHT: weight}, 0).name,
            "validation": {
                "classes": list("abcdefghi"[: len(hits)]),
                "queries": [9] * len(hits),
                "trained": {"recall@1": [round(n / 9, 6) for n in of_setting]},
            },
        }
        for weight, of_setting in ((1, hits), (2, others))
    ]
    assert chosen_setting(study, scored, "on") == {WEIGHT: 1}


def test_settings_that_were_scored_on_different_classes_are_not_compared(study):
    results = results_of({1: (0.9, 0.1), 2: (0.6, 0.6), 3: (0.5, 0.6)})
    results[3]["validation"] = {**results[3]["validation"], "classes": ["a", "easy"]}
    with pytest.raises(InputError, match="on_weight-1_seed0 and on_weight-2_seed1 were scored on different validation"):
        chosen_setting(study, results, "on")


def test_a_question_that_is_left_empty_is_none(tmp_path):
    assert read_study(written(tmp_path, question=None)).question == ""


def test_other_seeds_have_no_say(study):
    results = results_of({1: (0.9, 0.1, 1.0), 2: (0.6, 0.6, 0.0), 3: (0.5, 0.6)})
    assert chosen_setting(study, results, "on") == {WEIGHT: 2}


def test_of_equal_settings_the_first_is_chosen(study):
    assert chosen_setting(study, results_of({1: (0.1, 0.1), 2: (0.6, 0.6), 3: (0.6, 0.6)}), "on") == {WEIGHT: 2}


def test_nothing_is_chosen_before_all_is_there(study):
    assert chosen_setting(study, results_of({1: (0.9, 0.1), 2: (0.6, 0.6), 3: (0.5,)}), "on") is None


def test_a_setting_that_failed_once_is_out(study):
    results = results_of({1: (0.9, 0.9), 2: (0.6, 0.6), 3: (0.5, 0.6)})
    results[0] = {"cell": results[0]["cell"], "validation": None, "failed": "the loss is nan"}
    assert chosen_setting(study, results, "on") == {WEIGHT: 2}
    everything = [{**x, "validation": None, "failed": "the loss is nan"} for x in results]
    assert chosen_setting(study, everything, "on") is None


@given(st.lists(st.tuples(st.integers(1, 50), st.floats(0, 1)), min_size=1))
def test_a_score_is_the_mean_over_queries(classes):
    queries, values = [n for n, _ in classes], [x for _, x in classes]
    part = {"queries": queries, "trained": {"map@r": values}}
    assert score_of({"test": part}, "test", "map@r") == pytest.approx(np.repeat(values, queries).mean())
