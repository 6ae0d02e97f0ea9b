"""The pages with figures are what their generators make of the files of results."""

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    yield ROOT / "benchmarks"
    for name in ("page", "measure"):
        sys.modules.pop(name, None)


def test_the_page_shows_the_figures_that_were_measured(benchmarks: Path) -> None:
    from page import PAGE, page

    assert PAGE.read_text(encoding="utf-8") == page()


def test_each_figure_names_its_machine_and_day(benchmarks: Path) -> None:
    for path in (benchmarks / "results").glob("*.json"):
        record = json.loads(path.read_text(encoding="utf-8"))
        assert record["name"] == path.stem
        assert record["date"] and record["environment"]["processor"] and record["rows"], path
