"""Checkpoints restore everything, and refuse what they must not read."""

import pickle
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from orthoproxy.core.errors import InputError
from orthoproxy.training import Checkpoints, Position


def setting(folder: Path, width: int = 3) -> tuple[Checkpoints, nn.Linear, nn.Linear]:
    torch.manual_seed(0)
    encoder, objective = nn.Linear(2, width), nn.Linear(width, 1)
    optimizer = torch.optim.AdamW([*encoder.parameters(), *objective.parameters()], lr=0.1)
    objective(encoder(torch.ones(4, 2))).sum().backward()
    optimizer.step()
    return Checkpoints(folder, encoder, objective, optimizer), encoder, objective


def draw() -> tuple[float, float, float]:
    return torch.rand(()).item(), random.random(), float(np.random.rand())


def test_weights_optimiser_position_and_random_states_come_back(tmp_path):
    checkpoints, encoder, objective = setting(tmp_path)
    position = Position(step=7, epoch=1, batch=3, best=0.5, best_epoch=1, stale=2, seconds=9.0)
    checkpoints.save("last", position)
    weights, expected = encoder.weight.detach().clone(), draw()
    moments = [state["exp_avg"].clone() for state in checkpoints.optimizer.state.values()]

    with torch.no_grad():
        for parameter in (*encoder.parameters(), *objective.parameters()):
            parameter.add_(1)
    for state in checkpoints.optimizer.state.values():
        state["exp_avg"].zero_()
    draw()

    assert checkpoints.load("last") == position
    assert torch.equal(encoder.weight, weights)
    assert all(
        torch.equal(state["exp_avg"], moment)
        for state, moment in zip(checkpoints.optimizer.state.values(), moments, strict=True)
    )
    assert draw() == expected


def test_no_half_written_file_takes_the_name(tmp_path, monkeypatch):
    checkpoints, *_ = setting(tmp_path)
    checkpoints.save("last", Position(step=1))

    def interrupted_save(state, file):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", interrupted_save)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.save("last", Position(step=2))
    assert checkpoints.load("last").step == 1


def test_a_file_cut_short_is_named(tmp_path):
    checkpoints, *_ = setting(tmp_path)
    checkpoints.save("last", Position())
    path = checkpoints.path("last")
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InputError, match=r"cannot read the checkpoint .*last\.ckpt"):
        checkpoints.load("last")


class Hostile:
    def __init__(self, marker: str) -> None:
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (Path(self.marker),)


def test_code_inside_a_checkpoint_does_not_run(tmp_path):
    checkpoints, *_ = setting(tmp_path)
    marker = tmp_path / "ran"
    torch.save({"format_version": 1, "encoder": Hostile(str(marker))}, checkpoints.path("last"))
    with pytest.raises(InputError, match="cannot read the checkpoint"):
        checkpoints.load("last")
    checkpoints.path("last").write_bytes(pickle.dumps(Hostile(str(marker)), protocol=2))
    with pytest.raises(InputError, match="cannot read the checkpoint"):
        checkpoints.load("last")
    assert not marker.exists()


def test_another_configuration_is_named(tmp_path):
    checkpoints, *_ = setting(tmp_path)
    checkpoints.save("last", Position())
    wider, *_ = setting(tmp_path, width=4)
    with pytest.raises(InputError, match="made with another configuration"):
        wider.load("last")
