"""A damaged checkpoint is detected: the run goes on from the one before."""

import random
import zipfile
from functools import partial
from pathlib import Path

import pytest
import torch
from errors import message
from fault_injection import kill_at
from small_runs import Run
from torch import nn

from orthoproxy.cli.main import main
from orthoproxy.core.errors import InputError
from orthoproxy.training.checkpoint import Checkpoints, TrainingState


def flip_bit(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << (place % 8)
    path.write_bytes(content)


def test_no_flipped_bit_gets_into_the_weights(tmp_path: Path) -> None:
    layer, draw = nn.Linear(3, 2), random.Random(0)
    checkpoints = Checkpoints(tmp_path, layer, nn.Identity(), torch.optim.AdamW(layer.parameters()))
    checkpoints.save("last", TrainingState(step=3))
    path, weight = checkpoints.path("last"), layer.weight.detach().clone()
    sound = path.read_bytes()
    # every byte of the weights, and some of all others
    with zipfile.ZipFile(path) as parts:
        (part,) = (part for part in parts.infolist() if parts.read(part)[:24] == weight.numpy().tobytes())
    start = sound.index(weight.numpy().tobytes(), part.header_offset)
    detected = 0
    for place in [*range(start, start + 24), *(draw.randrange(len(sound)) for _ in range(200))]:
        path.write_bytes(sound)
        flip_bit(path, place)
        nn.init.zeros_(layer.weight)
        try:
            step = checkpoints.load("last").step
        except InputError:
            detected += 1
        else:  # in the padding, or in a time that nobody reads
            assert step == 3 and torch.equal(layer.weight, weight), place
    assert detected > 100


@pytest.mark.slow
def test_a_run_goes_on_from_the_checkpoint_before_but_not_if_both_are_damaged(run: Run, whole: Path, capsys) -> None:
    run.start(partial(kill_at, "step:11")).end()  # in its third epoch, with two checkpoints
    last, previous = (run.out / "checkpoints" / f"{name}.ckpt" for name in ("last", "previous"))
    sound = previous.read_bytes()
    flip_bit(last, last.stat().st_size // 2)
    flip_bit(previous, previous.stat().st_size // 2)
    content = last.read_bytes(), previous.read_bytes()
    assert main(run.words("--resume")) == 2
    assert "best.ckpt" in message(capsys.readouterr().err)  # what can be done
    assert (last.read_bytes(), previous.read_bytes()) == content

    previous.write_bytes(sound)
    assert run.resumes_to(whole)
    assert "last.ckpt" in capsys.readouterr().err
    assert (run.out / "checkpoints" / "damaged.ckpt").read_bytes() == content[0]
