"""Results of trials: JSON and Parquet give back what was written, and damage is found."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from errors import error_of
from synthetic_study import WEIGHT, make_failure, make_result, make_study

from orthoproxy.studies.plan import Trial
from orthoproxy.studies.results import read_results, read_trial, score_matrix, write_results, write_trial

TRIAL = Trial("proxy-anchor", {}, 3)


@pytest.fixture
def result():
    return make_result(make_study(), TRIAL, evaluated=True, setting={"a": [1, 2.5, None, "ü"], "b": True})


@pytest.fixture
def path(tmp_path, result):
    path = tmp_path / "trials" / f"{TRIAL.name}.json"
    write_trial(result, path)
    return path


def test_parquet_gives_back_what_was_written_sorted_by_name(tmp_path, result):
    study = make_study()
    retrained = {"date": "2026-11-25", "environment": {"torch": "3"}}
    results = [
        result,
        make_failure(study, Trial("so-sum", {"b": 1}, 0)),
        make_result(study, Trial("so-excess", {WEIGHT: 1}, 0), evaluated=True, retrained=retrained, geometry=None),
    ]
    write_results(results, tmp_path / "results" / "s.parquet")
    assert read_results(tmp_path / "results" / "s.parquet") == sorted(results, key=lambda r: r.trial)


@pytest.mark.parametrize(("changes", "field"), [
    ({"format_version": 1}, "format_version"), ({"trial": "missing"}, "trial"), ({"seed": "x"}, "seed"),
    ({"elapsed": float("nan")}, "elapsed"), ({"validation": None}, None), ({"seconds": None}, None),
])  # fmt: skip
def test_damaged_values_name_the_field(path, changes, field):
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value != "missing"}))
    error = error_of(read_trial, path)
    assert (error.path, error.field) == (path, field)
    path.write_text(path.read_text()[:-100])
    assert error_of(read_trial, path).path == path


@pytest.mark.parametrize("damage", [
    lambda scores: scores["queries"].pop(), lambda scores: scores["queries"].__setitem__(0, 0),
    lambda scores: scores["trained"].pop("map@r"), lambda scores: scores["untrained"]["recall@1"].append(0.5),
])  # fmt: skip
def test_scores_that_do_not_fit_together_are_found(path, damage):
    content = json.loads(path.read_text())
    damage(content["test"])
    path.write_text(json.dumps(content))
    assert error_of(read_trial, path).field.startswith("test")


def test_json_gives_back_what_was_written_under_the_name_of_the_trial(path, result):
    assert read_trial(path) == result
    other = path.rename(path.with_name("so-sum_seed3.json"))
    assert error_of(read_trial, other).path == other


def test_a_damaged_parquet_file_is_found(tmp_path, result):
    write_results([result], tmp_path / "s.parquet")
    content = (tmp_path / "s.parquet").read_bytes()
    (tmp_path / "s.parquet").write_bytes(content[: len(content) // 2])
    assert error_of(read_results, tmp_path / "s.parquet").path == tmp_path / "s.parquet"
    pq.write_table(pa.table({"options": ["{"]}), tmp_path / "s.parquet")
    assert error_of(read_results, tmp_path / "s.parquet").path == tmp_path / "s.parquet"


def test_results_of_other_queries_are_no_matrix(result):
    fewer = result.test.model_copy(update={"queries": [1] * len(result.test.queries)})
    error = error_of(score_matrix, [result, result.model_copy(update={"test": fewer})], "map@r")
    assert "different test classes or queries" in error.problem
