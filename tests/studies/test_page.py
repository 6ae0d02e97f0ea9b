"""The page of a study: complete, self-contained, and readable in a real browser."""

from typing import Any

import pandas as pd
import pytest
from pages import ParsedPage, assert_fits_and_loads_nothing
from synthetic_study import finished_results, make_failure, make_study

from orthoproxy.studies.page import write_page
from orthoproxy.studies.plan import Method


def test_a_finished_study_has_its_tables_and_figures(tmp_path):
    study = make_study(title="<b>Does it help?</b>")
    write_page(study, finished_results(study), tmp_path)
    text = (tmp_path / "index.html").read_text()
    page = ParsedPage(text)
    assert len(page.attributes("svg")) == 2  # differences and scores
    assert len(page.tables) == 4 and page.loads == []
    assert "<b>Does it help?</b>" not in text
    assert len(pd.read_csv(tmp_path / "table.csv")) == 6


@pytest.mark.parametrize("kept", [0, 1])
def test_a_study_in_progress_has_a_page(tmp_path, kept):
    study = make_study()
    results = [result for result in finished_results(study) if result.seed < kept]
    results[:1] = [make_failure(study, study.possible_trials[result.trial]) for result in results[:1]]
    write_page(study, results, tmp_path)
    assert len(ParsedPage((tmp_path / "index.html").read_text()).tables) == 4


@pytest.mark.browser
def test_it_fits_and_loads_nothing(browser: Any, tmp_path) -> None:
    many = {f"a-method-with-quite-a-long-name-{i}": Method() for i in range(5)}
    study = make_study(seeds=2, methods={**make_study().methods, **many})
    write_page(study, finished_results(study), tmp_path)
    for width, scheme in ((1280, "dark"), (390, "light")):
        assert_fits_and_loads_nothing(browser, (tmp_path / "index.html").as_uri(), width, scheme)
