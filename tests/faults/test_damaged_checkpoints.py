"""A damaged checkpoint is detected: the run goes on from the one before."""

from __future__ import annotations

import random
import shutil
import zipfile
from functools import partial
from pathlib import Path

import pytest
import torch
from fault_injection import kill_at
from small_runs import Started, difference, message, training
from torch import nn

from orthoproxy.cli.main import main
from orthoproxy.core.errors import InputError
from orthoproxy.training import Checkpoints, TrainingState


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


@pytest.fixture(scope="module")
def killed(recipe: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that ended in its third epoch, with two checkpoints."""
    out = tmp_path_factory.mktemp("killed") / "run"
    Started(training(recipe, photos, out), out.with_name("errors"), partial(kill_at, "step:11")).end()
    assert {"last.ckpt", "previous.ckpt"} <= {path.name for path in (out / "checkpoints").iterdir()}
    return out


def damage(run: Path, name: str) -> bytes:
    path = run / "checkpoints" / name
    flip_bit(path, path.stat().st_size // 2)
    return path.read_bytes()


def test_a_run_goes_on_from_the_checkpoint_before(
    killed: Path, recipe: Path, photos: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = Path(shutil.copytree(killed, tmp_path / "run"))
    damaged = damage(out, "last.ckpt")
    assert main(training(recipe, photos, out, "--resume")) == 0 and not difference(out, whole)
    assert "last.ckpt" in capsys.readouterr().err
    assert (out / "checkpoints" / "damaged.ckpt").read_bytes() == damaged


def test_a_run_with_two_damaged_checkpoints_does_not_go_on(
    killed: Path, recipe: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = Path(shutil.copytree(killed, tmp_path / "run"))
    content = [damage(out, "last.ckpt"), damage(out, "previous.ckpt")]
    assert main(training(recipe, photos, out, "--resume")) == 2
    assert "best.ckpt" in message(capsys.readouterr().err)  # what can be done
    assert [(out / "checkpoints" / name).read_bytes() for name in ("last.ckpt", "previous.ckpt")] == content
