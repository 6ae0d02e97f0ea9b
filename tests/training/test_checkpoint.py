"""Checkpoints restore everything; damage is told from other errors."""

import errno
import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from errors import error_of
from torch import nn

from orthoproxy.training.checkpoint import Checkpoints, TrainingState


def make(folder: Path, width: int = 3) -> tuple[Checkpoints, nn.Linear, nn.Linear]:
    torch.manual_seed(0)
    encoder, objective = nn.Linear(2, width), nn.Linear(width, 1)
    optimizer = torch.optim.AdamW([*encoder.parameters(), *objective.parameters()], lr=0.1)
    objective(encoder(torch.ones(4, 2))).sum().backward()
    optimizer.step()
    return Checkpoints(folder, encoder, objective, optimizer), encoder, objective


def draw() -> tuple[float, float, float]:
    return torch.rand(()).item(), random.random(), float(np.random.rand())


def test_progress_and_random_states_come_back(tmp_path):
    checkpoints, *_ = make(tmp_path)
    state = TrainingState(step=7, epoch=1, batch=3, best_score=0.5, best_epoch=1, validations_since_best=2, seconds=9.0)
    checkpoints.save("last", state)
    expected = draw()
    assert checkpoints.load("last") == state and draw() == expected


@pytest.mark.parametrize(
    "error", [MemoryError(), OSError(errno.ESTALE, ""), OSError(errno.EIO, ""), torch.OutOfMemoryError()]
)
def test_an_error_that_is_not_damage_leaves_every_checkpoint_in_place(tmp_path, monkeypatch, error):
    checkpoints, *_ = make(tmp_path)
    for step in (10, 20):
        checkpoints.save("last", TrainingState(step=step))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def fail(*_, **__):
        raise error

    with monkeypatch.context() as patched, pytest.raises((MemoryError, OSError, RuntimeError)) as caught:
        patched.setattr(torch, "load", fail)
        checkpoints.load("last")
    assert caught.value is error
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert checkpoints.load("last").step == 20


def test_only_the_random_state_of_the_own_gpu_is_saved(tmp_path, monkeypatch):
    """A run of a machine with four GPUs resumes on one with a single GPU."""
    checkpoints, *_ = make(tmp_path)
    checkpoints.device, seen = torch.device("cuda", 0), []
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: torch.arange(3, dtype=torch.uint8))
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: seen.append((state.tolist(), device)))
    checkpoints.save("last", TrainingState())
    checkpoints.load("last")
    assert seen == [([0, 1, 2], torch.device("cuda", 0))]


@pytest.mark.parametrize("damage", ["cut", "missing"])
def test_a_damaged_checkpoint_falls_back_to_the_previous_one_or_is_an_error(tmp_path, damage):
    checkpoints, *_ = make(tmp_path)
    for step in (10, 20):
        checkpoints.save("last", TrainingState(step=step))
    path = checkpoints.path("last")
    if damage == "missing":
        path.unlink()
    else:
        os.truncate(path, 1000)
    assert checkpoints.load("last").step == 10
    assert (tmp_path / "damaged.ckpt").exists() == (damage != "missing")
    checkpoints.path("last").write_text("damaged")
    checkpoints.path("previous").unlink(missing_ok=True)
    error = error_of(checkpoints.load, "last")
    assert error.path == checkpoints.path("last") and error.hint


def test_a_checkpoint_of_another_configuration_is_an_error(tmp_path):
    checkpoints, *_ = make(tmp_path)
    checkpoints.save("last", TrainingState())
    wider, *_ = make(tmp_path, width=4)
    assert error_of(wider.load, "last").path == checkpoints.path("last")
