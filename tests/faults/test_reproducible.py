"""Runs with the same configuration are bit-identical."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from small_runs import Started, difference, training
from torch.optim.optimizer import register_optimizer_step_post_hook

from orthoproxy.cli.main import main


def test_a_run_does_not_depend_on_earlier_random_numbers_or_workers(
    recipe: Path, photos: Path, whole: Path, tmp_path: Path
) -> None:
    def first() -> None:
        random.seed(1)
        np.random.seed(2)
        torch.manual_seed(3)

    out = tmp_path / "run"
    code, error = Started(training(recipe, photos, out, "--data.workers", 2), tmp_path / "errors", first).end()
    assert code == 0 and not difference(out, whole), error


@pytest.mark.slow
def test_a_run_does_not_depend_on_the_process(recipe: Path, photos: Path, whole: Path, tmp_path: Path) -> None:
    out, variables = tmp_path / "run", {**os.environ, "PYTHONHASHSEED": "7"}
    program = [sys.executable, "-m", "orthoproxy", *training(recipe, photos, out)]
    done = subprocess.run(program, env=variables, capture_output=True, text=True)
    assert done.returncode == 0 and not difference(out, whole), done.stderr


def test_another_seed_is_another_run(recipe: Path, photos: Path, whole: Path, tmp_path: Path) -> None:
    assert main(training(recipe, photos, tmp_path / "run", "--training.seed", 1)) == 0
    assert "weights" in difference(tmp_path / "run", whole)


def test_deterministic_algorithms_are_on_while_training_only(
    recipe: Path, photos: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    during = []
    note = lambda *_: during.append(torch.are_deterministic_algorithms_enabled())  # noqa: E731
    handle = register_optimizer_step_post_hook(note)
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    assert main(training(recipe, photos, tmp_path / "run", "--training.deterministic", "true")) == 0
    handle.remove()
    assert during and all(during) and not torch.are_deterministic_algorithms_enabled()
    assert not difference(tmp_path / "run", whole)
