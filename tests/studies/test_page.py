"""The page of a study: complete, self-contained, and readable in a real browser."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Any

import pandas as pd
import pytest
from pages import assert_fits_and_loads_nothing
from synthetic_study import finished_results, make_failure, make_study

from orthoproxy.studies.page import write_page
from orthoproxy.studies.plan import Method

MANY = {f"a-method-with-quite-a-long-name-{i}": Method() for i in range(5)}


class Page(HTMLParser):
    """Counts elements, and collects addresses."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]


def test_a_finished_study_has_its_tables_and_figures(tmp_path):
    study = make_study(title="<b>Does it help?</b>")
    write_page(study, finished_results(study), tmp_path)
    text = (tmp_path / "index.html").read_text()
    page = Page(text)
    assert page.tags.count("svg") == 3  # differences, scores, weights
    assert page.tags.count("table") == 4
    assert all(address.startswith(("data:", "#")) for address in page.addresses)
    assert "<b>Does it help?</b>" not in text
    assert len(pd.read_csv(tmp_path / "table.csv")) == 6


@pytest.mark.parametrize("kept", [0, 1])
def test_a_study_in_progress_has_a_page(tmp_path, kept):
    study = make_study()
    results = [result for result in finished_results(study) if result.seed < kept]
    results[:1] = [make_failure(study, study.possible_trials[result.trial]) for result in results[:1]]
    write_page(study, results, tmp_path)
    assert Page((tmp_path / "index.html").read_text()).tags.count("table") == 4


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("study")
    study = make_study(seeds=2, methods={**make_study().methods, **MANY})
    write_page(study, finished_results(study), folder)
    return (folder / "index.html").as_uri()


@pytest.mark.browser
@pytest.mark.parametrize(("width", "scheme"), [pytest.param(1280, "dark", marks=pytest.mark.slow), (390, "light")])
def test_it_fits_and_loads_nothing(browser: Any, address: str, width: int, scheme: str) -> None:
    assert_fits_and_loads_nothing(browser, address, width, scheme)
