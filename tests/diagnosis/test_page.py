"""The page of a diagnosis: its numbers and structure, and how it behaves in a browser."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from constructed import centers, healthy, relabel, split
from pages import ParsedPage, assert_fits_and_loads_nothing
from PIL import Image

from orthoproxy.diagnosis import Diagnosis, DiagnosisInput, diagnose
from orthoproxy.diagnosis.diagnose import render_diagnosis
from orthoproxy.diagnosis.label_errors import corrupt_labels


def limited(folder: Path) -> DiagnosisInput:
    """A model with overfitting, confused classes and label errors, with images to show."""
    points = centers(2)
    points[1::2] = points[::2]
    model = healthy()
    unseen = split("new", points, 2.0, 0.5, 20)
    names = "<b>" + unseen.table["label"] + "</b>" + "-with-a-very-long-name" * 4
    Image.new("RGB", (40, 30), "teal").save(path := str(folder / "a.png"))
    labels, _ = corrupt_labels(model.training.labels, 0.1)
    training = relabel(model.training, labels)
    return replace(
        model,
        name="limited & tired",
        unseen=replace(unseen, table=unseen.table.assign(label=names, path=path)),
        training=replace(training, table=training.table.assign(path=path)),
    )


@pytest.fixture(scope="module")
def diagnoses(tmp_path_factory: pytest.TempPathFactory) -> list[Diagnosis]:
    return [diagnose(limited(tmp_path_factory.mktemp("images"))), diagnose(healthy())]


def test_the_page_is_self_contained_escapes_names_and_shows_findings_and_evidence(diagnoses: list[Diagnosis]) -> None:
    page = ParsedPage(render_diagnosis(diagnoses))
    assert page.loads == [] and not page.attributes("script")
    assert len(page.attributes("img")) > 10
    assert "<b>new" in page.text and "limited & tired" in page.text
    findings = diagnoses[0].findings
    assert {check.name for check, _ in findings} >= {"overfitting", "confusions", "labels"}
    for _, finding in findings:
        assert not finding.rows or [finding.columns, *finding.rows] in page.tables
    for check in diagnoses[0].checks:
        assert [[name, value] for name, value in check.evidence.items()] in page.tables
    articles = [a["id"] for a in page.attributes("article")]
    assert articles == [f"run-1-{check.name}" for check, _ in findings]  # most severe first
    _, *rows = page.tables[0]  # compares the runs
    for (name, *cells), *checks in zip(rows, *(diagnosis.checks for diagnosis in diagnoses), strict=True):
        for cell, check in zip(cells, checks, strict=True):
            assert name == check.name
            assert cell.startswith(check.finding.effect if check.finding else check.status)


@pytest.mark.browser
def test_it_fits_a_desk_and_a_phone(diagnoses: list[Diagnosis], tmp_path: Path, browser: Any) -> None:
    (tmp_path / "page.html").write_text(render_diagnosis(diagnoses), encoding="utf-8")
    for width, scheme in ((1280, "light"), (320, "dark")):
        assert_fits_and_loads_nothing(browser, (tmp_path / "page.html").as_uri(), width, scheme)
