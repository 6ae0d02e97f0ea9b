"""The page of a study in a real browser: on a desk, on a phone, in the dark, on paper."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from pages import assert_fits_and_loads_nothing
from synthetic_study import a_study, its_cells

from orthoproxy.studies.page import write_page
from orthoproxy.studies.plan import Method

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module", params=["whole", "in part, with many methods"])
def address(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    study = a_study()
    cells = its_cells(study)
    if request.param != "whole":
        more = {f"a-method-with-quite-a-long-name-{i}": Method() for i in range(14)}
        study = replace(study, methods={**study.methods, **more})
        cells = [cell for cell in cells if cell["seed"] < 5]
        cells += its_cells(replace(study, methods={name: more[name] for name in list(more)[:12]}))
    folder = tmp_path_factory.mktemp("study")
    write_page(study, cells, folder)
    return (folder / "index.html").as_uri()


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "light"), (320, "dark")])
def test_it_fits_and_stays_at_home(browser: Any, address: str, width: int, scheme: str) -> None:
    assert_fits_and_loads_nothing(browser, address, width, scheme)


def test_names_in_figures_lie_within_them(browser: Any, address: str) -> None:
    """What sticks out of a figure is cut off."""
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    page.goto(address)
    assert page.evaluate("document.querySelectorAll('svg.plot').length") == 8
    outside = page.evaluate(
        """[...document.querySelectorAll('svg.plot')].flatMap(figure => {
            const whole = figure.getBoundingClientRect();
            return [...figure.querySelectorAll('text')].filter(text => {
                const box = text.getBoundingClientRect();
                return box.left < whole.left - 3 || box.right > whole.right + 3;
            }).map(text => text.textContent)
        })"""
    )
    assert outside == []
    page.close()


def test_it_prints(browser: Any, address: str) -> None:
    page = browser.new_page()
    page.goto(address)
    assert page.pdf(format="A4").startswith(b"%PDF")
    page.close()
