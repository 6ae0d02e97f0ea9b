"""orthoproxy diagnose, and the images it looks at."""

from pathlib import Path

import pytest
from command_line import RECIPE, input_error, json_of
from PIL import Image

from orthoproxy.cli.main import main

COLORS = ["red", "green", "blue", "gold", "pink", "navy", "teal", "plum", "peru", "tan", "lime", "aqua", "gray", "snow"]
SPLITS = ["--data.test_fraction", "0.3", "--data.validation_fraction", "0.2"]


def draw(root: Path, color: str, count: int) -> None:
    (root / color).mkdir(parents=True)
    for shade in range(count):
        Image.new("RGB", (32 + shade, 32), color).save(root / color / f"{shade}.png")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fourteen colors, four of them for testing, two for validation."""
    root = tmp_path_factory.mktemp("diagnose")
    for color in COLORS:
        draw(root / "images", color, 3)
    (root / "recipe.yaml").write_text(RECIPE)
    arguments = ["train", str(root / "images"), "--config", str(root / "recipe.yaml"), "--out", str(root / "run")]
    assert main([*arguments, *SPLITS]) == 0
    return root / "run"


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


def test_missing_runs_and_other_images_are_named(run: Path, tmp_path: Path) -> None:
    assert Path(str(input_error(["diagnose", "runs/nowhere"]).path)) == Path("runs/nowhere")
    assert input_error(["diagnose", run, "--data.root", "nowhere"]).field == "data.root"
    for color in ("white", "black", "brown", "red", "green"):  # two of which are training classes
        draw(tmp_path, color, 2)
    assert input_error(["diagnose", run, "--data.root", tmp_path]).field == "data.root"
