"""Runs to which something happens."""

from pathlib import Path

import pytest
from small_runs import Run


@pytest.fixture
def run(recipe: Path, photos: Path, tmp_path: Path) -> Run:
    return Run(recipe, photos, tmp_path)


@pytest.fixture
def run_of_own(recipe: Path, own_photos: Path, tmp_path: Path) -> Run:
    return Run(recipe, own_photos, tmp_path)
