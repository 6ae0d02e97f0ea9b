"""The page of a diagnosis: it is whole, alone, escapes what it shows, and fits a desk and a phone."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from constructed import centres, healthy, relabelled, side
from pages import assert_fits_and_loads_nothing
from PIL import Image

from orthoproxy.diagnosis import Diagnosis, Subject, diagnose, plant, render_diagnosis


def ill(folder: Path) -> Subject:
    """A model with overfitting, confused classes, wrong labels, and pictures to show."""
    points = centres(2)
    points[1::2] = points[::2]
    model = healthy()
    unseen = side("new", points, 2.0, 0.5, 20)
    names = "<b>" + unseen.table["label"] + "</b>" + "-with-a-very-long-name" * 4
    paths = [str(folder / f"{number}.png") for number in range(len(names))]
    for number, path in enumerate(paths):
        Image.new("RGB", (40, 30), (number % 250, 90, 120)).save(path)
    labels, _ = plant(model.training.labels, 0.1)
    training = relabelled(model.training, labels)
    return replace(
        model,
        name="ill & tired",
        unseen=replace(unseen, table=unseen.table.assign(label=names, path=paths)),
        training=replace(training, table=training.table.assign(path=paths[: len(training.table)])),
    )


@pytest.fixture(scope="module")
def diagnoses(tmp_path_factory: pytest.TempPathFactory) -> list[Diagnosis]:
    return [diagnose(ill(tmp_path_factory.mktemp("pictures"))), diagnose(healthy())]


def test_it_tells_every_finding_and_asks_no_other_host(diagnoses: list[Diagnosis]) -> None:
    page = render_diagnosis(diagnoses[:1])
    found = diagnoses[0].findings
    assert {check.name for check in found} >= {"overfitting", "confusions", "labels"}
    places = [page.index(f"{place}. {check.finding.title}") for place, check in enumerate(found, 1) if check.finding]
    assert places == sorted(places)
    for check in found:
        assert check.finding is not None
        assert all(sentence in page for sentence in check.finding.advice if "'" not in sentence)
    assert page.count('<img src="data:image/') > 10
    assert "<b>new" not in page and "&lt;b&gt;new" in page
    assert re.findall(r'(?:src|href)="(?!data:|#)[^"]*"', page) == []
    assert "ill &amp; tired" in page


def test_nothing_found_is_said(diagnoses: list[Diagnosis]) -> None:
    page = render_diagnosis(diagnoses[1:])
    assert "Nothing found that limits this model" in page
    assert all(check.name in page for check in diagnoses[1].checks)


def test_several_runs_stand_side_by_side(diagnoses: list[Diagnosis]) -> None:
    page = render_diagnosis(diagnoses)
    table = page[page.index('<table class="beside">') : page.index("</table>")]
    rows = re.findall(r'<tr><th scope="row">(.*?)</th>(.*?)</tr>', table, re.DOTALL)
    assert [name for name, _ in rows] == [check.name for check in diagnoses[0].checks]
    for (_, cells), one, other in zip(rows, *(d.checks for d in diagnoses), strict=True):
        left, right = re.findall(r"<td>(.*?)</td>", cells, re.DOTALL)
        assert ("<b>" in left) == (one.finding is not None)
        assert ("<b>" in right) == (other.finding is not None)


def test_a_picture_that_is_gone_leaves_its_place(diagnoses: list[Diagnosis], tmp_path: Path) -> None:
    points = centres(2)
    points[7] = points[3]
    page = render_diagnosis([diagnose(replace(healthy(), unseen=side("gone", points, 0.3, 0.5, 20)))])
    assert page.count("no picture") == 4


@pytest.mark.browser
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "light"), (320, "dark")])
def test_it_fits_and_stays_at_home(
    diagnoses: list[Diagnosis], tmp_path: Path, browser: Any, width: int, scheme: str
) -> None:
    (tmp_path / "page.html").write_text(render_diagnosis(diagnoses), encoding="utf-8")
    assert_fits_and_loads_nothing(browser, (tmp_path / "page.html").as_uri(), width, scheme)


def test_numbers_for_machines_are_json_and_hold_no_pictures(diagnoses: list[Diagnosis]) -> None:
    told = diagnoses[0].to_dict()
    assert set(told) == {"name", "unseen", "findings", "checks"}
    assert {check["name"] for check in told["checks"] if check["finding"]} == set(told["findings"])
    assert all(np.isfinite(check["finding"]["effect"]["value"]) for check in told["checks"] if check["finding"])
