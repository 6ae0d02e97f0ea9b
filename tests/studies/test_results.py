"""The result files of cells: what is damaged, or of another cell or configuration, is named with the remedy."""

import json
import re

import pytest
from synthetic_study import a_cell, a_study

from orthoproxy.core.errors import InputError
from orthoproxy.studies.plan import Cell
from orthoproxy.studies.results import CHECKS, read_result, write_result

CELL = Cell("proxy-anchor", {}, 3)


@pytest.fixture
def result():
    return a_cell(a_study(), "proxy-anchor", {}, 3, judged=True)


@pytest.fixture
def path(tmp_path, result):
    path = tmp_path / "cells" / f"{CELL.name}.json"
    write_result(result, path)
    return path


def test_what_is_written_is_read(path, result):
    assert read_result(path, CELL, result["options"]) == result
    assert len(path.read_text().splitlines()) == len(result) + 2


@pytest.mark.parametrize("content", ["{", "", "\x00"])
def test_what_is_no_json_is_damaged(path, content):
    path.write_text(content)
    with pytest.raises(InputError, match=re.escape(f"{path}: damaged; remove it, and its cell is trained again")):
        read_result(path, CELL, {})


@pytest.mark.parametrize("content", ["[]", "null", "{}", '{"format_version": 9}'])
def test_another_version_is_named(path, content):
    path.write_text(content)
    with pytest.raises(InputError, match=r"format_version (None|9) is unknown; this orthoproxy reads 1"):
        read_result(path, CELL, {})


@pytest.mark.parametrize("key", CHECKS)
def test_a_key_that_is_missing_is_named(path, result, key):
    write_result({name: value for name, value in result.items() if name != key}, path)
    with pytest.raises(InputError, match=f"damaged, {key} is missing; remove it"):
        read_result(path, CELL, result["options"])


VALUES = [None, [], {}, "x", [5], {"x": 1}, True, float("nan")]
OF_THE_KIND = {  # what a cell may leave there
    "cell": ["x"],
    "method": ["x"],
    "setting": [{}, {"x": 1}],
    "options": [{}, {"x": 1}],
    "curve": [[]],
    "test": [None],
    "geometry": [None],
}
OF_ANOTHER = [(key, value) for key in CHECKS for value in VALUES if value not in OF_THE_KIND.get(key, [])]


@pytest.mark.parametrize(("key", "value"), OF_ANOTHER)
def test_a_value_of_another_kind_is_named(path, result, key, value):
    write_result(result | {key: value}, path)
    with pytest.raises(InputError, match=rf"{re.escape(str(path))}: damaged"):
        read_result(path, CELL, result["options"])


@pytest.mark.parametrize(("key", "value"), [("setting", {}), ("curve", []), ("test", None), ("geometry", None)])
def test_what_a_cell_may_lack_may_be_empty(path, result, key, value):
    write_result(result | {key: value}, path)
    assert read_result(path, CELL, result["options"])[key] == value


@pytest.mark.parametrize(
    "harm",
    [
        lambda scores: scores["queries"].pop(),
        lambda scores: scores["queries"].__setitem__(0, 0),
        lambda scores: scores["classes"].__setitem__(0, 7),
        lambda scores: scores["trained"].pop("map@r"),
        lambda scores: scores["untrained"]["recall@1"].append(0.5),
        lambda scores: scores["trained"]["recall@1"].__setitem__(0, None),
    ],
)
@pytest.mark.parametrize("part", ["validation", "test"])
def test_scores_that_do_not_fit_together_are_damaged(path, result, part, harm):
    harm(result[part])
    write_result(result, path)
    with pytest.raises(InputError, match=f"damaged, {part} is not what a cell leaves"):
        read_result(path, CELL, result["options"])


def test_a_training_that_failed_has_no_scores(path, result):
    nothing = {"validation": None, "test": None, "seconds": None, "images": None, "geometry": None, "curve": []}
    failed = result | nothing | {"failed": "the loss is nan"}
    write_result(failed, path)
    assert read_result(path, CELL, result["options"]) == failed


def test_a_file_of_another_cell_is_named(path, result):
    other = path.rename(path.with_name("on_seed3.json"))
    with pytest.raises(InputError, match="is of the cell proxy-anchor_seed3; give the file that name, or remove it"):
        read_result(other, Cell("on", {}, 3), result["options"])


@pytest.mark.parametrize(
    ("before", "now", "message"),
    [
        ({"a": 2}, {"a": 5}, "of a run with a 2, and the study has 5; remove the file and its run folder"),
        ({}, {"a": 5}, "with a the default, and the study has 5"),
        ({"a": 5}, {}, "with a 5, and the study has the default"),
        ({}, {"a": None}, "with a the default, and the study has None"),
        ({"a": None}, {}, "with a None, and the study has the default"),
    ],
)
def test_another_configuration_is_named(path, result, before, now, message):
    write_result(result | {"options": before}, path)
    assert read_result(path, CELL, before) is not None
    with pytest.raises(InputError, match=message):
        read_result(path, CELL, now)


def test_the_made_up_cells_are_such_results(result):
    assert all(is_right(result[key]) for key, is_right in CHECKS.items())
    assert json.loads(json.dumps(result)) == result
