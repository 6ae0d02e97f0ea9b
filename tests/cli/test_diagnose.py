"""orthoproxy diagnose, and the images it looks at."""

import shutil
from pathlib import Path

import pytest
from command_line import input_error, json_of
from small_runs import training

from orthoproxy.cli.main import main


@pytest.fixture(scope="module")
def run(recipe: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten classes, four of them for testing, two for validation."""
    out = tmp_path_factory.mktemp("diagnose") / "run"
    assert main(training(recipe, photos, out, "--training.epochs", 1)) == 0
    return out


def test_page_and_json(run: Path) -> None:
    (result,) = json_of(["diagnose", run, "--workers", 0])["runs"]
    assert (run / "diagnosis.html").read_text(encoding="utf-8").lstrip().startswith("<!DOCTYPE html>")
    assert result["unseen"] == {"split": "test", "classes": 4}  # too few validation classes
    assert len(result["checks"]) == 4


def test_several_runs_and_a_split(run: Path, tmp_path: Path) -> None:
    arguments = ["diagnose", run, run, "--workers", 0, "--max-images", 7]
    assert input_error(arguments).field == "out"
    results = json_of([*arguments, "--out", tmp_path / "both", "--split", "validation"])["runs"]
    assert (tmp_path / "both" / "diagnosis.html").is_file()
    assert [result["unseen"] for result in results] == [{"split": "validation", "classes": 2}] * 2


def test_missing_runs_and_other_images_are_named(run: Path, photos: Path, tmp_path: Path) -> None:
    assert Path(str(input_error(["diagnose", "runs/nowhere"]).path)) == Path("runs/nowhere")
    assert input_error(["diagnose", run, "--data.root", "nowhere"]).field == "data.root"
    for number in range(10):  # of which some are training classes
        name = f"class {number}" if number < 5 else f"other {number}"
        shutil.copytree(photos / f"class {number}", tmp_path / "images" / name)
    assert input_error(["diagnose", run, "--data.root", tmp_path / "images"]).field == "data.root"
