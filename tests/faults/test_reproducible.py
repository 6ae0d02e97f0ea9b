"""Runs with the same configuration are bit-identical."""

import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from small_runs import Run, difference
from torch.optim.optimizer import register_optimizer_step_post_hook

from orthoproxy.cli.main import main


def test_a_run_does_not_depend_on_earlier_random_numbers_or_workers(run: Run, whole: Path) -> None:
    def first() -> None:
        random.seed(1)
        np.random.seed(2)
        torch.manual_seed(3)

    code, error = run.start(first, "--data.workers", 2).end()
    assert code == 0 and not difference(run.out, whole), error


@pytest.mark.slow
def test_a_run_does_not_depend_on_the_process(run: Run, whole: Path) -> None:
    program = [sys.executable, "-m", "orthoproxy", *run.words()]
    done = subprocess.run(program, env={**os.environ, "PYTHONHASHSEED": "7"}, capture_output=True, text=True)
    assert done.returncode == 0 and not difference(run.out, whole), done.stderr


def test_deterministic_algorithms_are_on_while_training_only(run: Run, whole: Path, monkeypatch) -> None:
    during = []
    handle = register_optimizer_step_post_hook(lambda *_: during.append(torch.are_deterministic_algorithms_enabled()))
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    assert main(run.words("--training.deterministic", "true")) == 0
    handle.remove()
    assert during and all(during) and not torch.are_deterministic_algorithms_enabled()
    assert not difference(run.out, whole)
