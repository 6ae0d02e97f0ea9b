"""The page in a real browser: on a desk, on a phone, in the dark, on paper."""

from __future__ import annotations

from typing import Any

import pytest
from pages import assert_fits_and_stays_at_home
from synthetic_run import synthetic_run

from orthoproxy.reports import render_report

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("report")
    run = synthetic_run(folder, groups=True, classes=[f"a-{'very-' * 12}long-name-{number}" for number in range(12)])
    (folder / "report.html").write_text(render_report(run), encoding="utf-8")
    return (folder / "report.html").as_uri()


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "light"), (320, "dark")])
def test_it_fits_and_stays_at_home(browser: Any, address: str, width: int, scheme: str) -> None:
    assert_fits_and_stays_at_home(browser, address, width, scheme)


def test_text_in_figures_is_legible_on_a_phone(browser: Any, address: str) -> None:
    page = browser.new_page(viewport={"width": 390, "height": 800})
    page.goto(address)
    heights = page.evaluate(
        "[...document.querySelectorAll('svg.plot text')].map(text => text.getBoundingClientRect().height)"
    )
    assert min(height for height in heights if height) >= 7  # superscripts; labels are larger
    assert sorted(heights)[len(heights) // 2] >= 10
    page.close()


def test_it_prints(browser: Any, address: str) -> None:
    page = browser.new_page()
    page.goto(address)
    assert page.pdf(format="A4").startswith(b"%PDF")
    page.close()
