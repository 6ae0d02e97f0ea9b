"""A small run for all tests of the command line."""

from pathlib import Path

import pytest
from command_line import Files, make_files, train_arguments

from orthoproxy.cli.main import main


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return make_files(tmp_path_factory.mktemp("cli"))


@pytest.fixture(scope="session")
def run(files: Files, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; tests that change it copy it."""
    out = tmp_path_factory.mktemp("run") / "x"
    assert main(train_arguments(files, out)) == 0
    return out
