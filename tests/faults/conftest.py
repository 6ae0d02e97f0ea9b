"""Runs to which something happens, and one that nothing happened to."""

import shutil
from pathlib import Path

import pytest
from small_runs import Run, training

from orthoproxy.cli.main import main


@pytest.fixture
def run(recipe: Path, photos: Path, tmp_path: Path) -> Run:
    return Run(recipe, photos, tmp_path)


@pytest.fixture
def own_photos(photos: Path, tmp_path: Path) -> Path:
    """A copy, to be damaged."""
    return Path(shutil.copytree(photos, tmp_path / "photos"))


@pytest.fixture
def run_of_own(recipe: Path, own_photos: Path, tmp_path: Path) -> Run:
    return Run(recipe, own_photos, tmp_path)


@pytest.fixture(scope="session")
def whole(recipe: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """To be read only."""
    out = tmp_path_factory.mktemp("whole") / "run"
    assert main(training(recipe, photos, out)) == 0
    return out
