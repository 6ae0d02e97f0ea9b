"""Records of tests: a line each, and nothing where nobody asks for them."""

import json

from records import VARIABLE, record


def test_a_record_is_a_line_that_names_its_test(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(tmp_path / "records.jsonl"))
    record("faults", "a worker killed", "one batch", moment="step 3")
    record("faults", "a worker killed")
    first, second = map(json.loads, (tmp_path / "records.jsonl").read_text().splitlines())
    test = "tests/test_records.py::test_a_record_is_a_line_that_names_its_test"
    assert first == {
        "section": "faults",
        "tried": "a worker killed",
        "lost": "one batch",
        "test": test,
        "moment": "step 3",
    }
    assert second["lost"] == "nothing"


def test_without_the_variable_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    record("faults", "a worker killed")
    assert not list(tmp_path.iterdir())
