"""Images, a recipe, and a run that nothing happened to."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from small_runs import RECIPE, make_photos, training

from orthoproxy.cli.main import main


@pytest.fixture(scope="session")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    path.write_text(RECIPE)
    return path


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """To be read only."""
    root = tmp_path_factory.mktemp("photos") / "photos"
    make_photos(root)
    return root


@pytest.fixture
def own_photos(photos: Path, tmp_path: Path) -> Path:
    """A copy, to be damaged."""
    return Path(shutil.copytree(photos, tmp_path / "photos"))


@pytest.fixture(scope="session")
def whole(recipe: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """To be read only."""
    out = tmp_path_factory.mktemp("whole") / "run"
    assert main(training(recipe, photos, out)) == 0
    return out
