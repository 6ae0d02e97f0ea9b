"""A checkpoint with a flipped byte is not believed: the run goes on from the one before it, and says so."""

from __future__ import annotations

import random
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from records import record
from small_runs import STEPS_AN_EPOCH, Started, difference, lines_of, training
from torch import nn

from orthoproxy.cli.main import main
from orthoproxy.core.errors import InputError
from orthoproxy.runs.run_folder import Run
from orthoproxy.training import Checkpoints, Position

FLIPS = 200


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << (place % 8)
    path.write_bytes(content)


def test_no_flipped_byte_gets_into_the_weights(tmp_path: Path) -> None:
    layer, draw = nn.Linear(3, 2), random.Random(0)
    checkpoints = Checkpoints(tmp_path, layer, nn.Identity(), torch.optim.AdamW(layer.parameters()))
    checkpoints.save("last", Position(step=3))
    path, weight = checkpoints.path("last"), layer.weight.detach().clone()
    sound = path.read_bytes()
    # every byte of the weights themselves, and some of all others
    with zipfile.ZipFile(path) as parts:
        (part,) = (part for part in parts.infolist() if parts.read(part)[:24] == weight.numpy().tobytes())
    start = sound.index(weight.numpy().tobytes(), part.header_offset)
    refused, harmless, lost = 0, 0, 0
    for place in [*range(start, start + 24), *(draw.randrange(len(sound)) for _ in range(FLIPS))]:
        path.write_bytes(sound)
        flip(path, place)
        with torch.no_grad():
            layer.weight.zero_()
        try:
            step = checkpoints.load("last").step
        except InputError:
            refused += 1
        else:  # of the padding between the parts, or of a time nobody reads
            harmless += 1
            lost += not (step == 3 and torch.equal(layer.weight, weight))
    record("faults", "a byte of a checkpoint flipped", "a weight" if lost else "nothing", times=24 + FLIPS)
    assert lost == 0 and refused > 100, (lost, refused, harmless)


@pytest.fixture(scope="module")
def killed(recipe: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that ended in its third epoch, with two checkpoints."""
    out = tmp_path_factory.mktemp("killed") / "run"

    def at_step(run: Run) -> None:
        raise KeyboardInterrupt

    Started(training(recipe, photos, out), out.with_name("errors"), 2 * STEPS_AN_EPOCH + 1, at_step).end()
    assert {path.name for path in Run(out).checkpoints.iterdir()} == {"last.ckpt", "previous.ckpt", "best.ckpt"}
    return out


def test_the_run_goes_on_from_the_one_before(
    killed: Path, recipe: Path, photos: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = Path(shutil.copytree(killed, tmp_path / "run"))
    last = Run(out).checkpoints / "last.ckpt"
    flip(last, last.stat().st_size // 2)
    damaged = last.read_bytes()
    code = main(training(recipe, photos, out, "--resume"))
    error, lost = capsys.readouterr().err, difference(out, whole)
    record("faults", "the last checkpoint of a run damaged", lost)
    assert (code, lost) == (0, "nothing")
    told = [line for line in error.splitlines() if line.startswith("note: ")]
    assert told[0].startswith(f"note: cannot read the checkpoint {last}, which is cut short or damaged: ")
    assert told[1] == "note: going on from the checkpoint before it; the damaged one is kept as damaged.ckpt"
    assert last.with_name("damaged.ckpt").read_bytes() == damaged


def test_where_both_are_damaged_it_says_what_can_be_done(
    killed: Path, recipe: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = Path(shutil.copytree(killed, tmp_path / "run"))
    for name in ("last", "previous"):
        path = Run(out).checkpoints / f"{name}.ckpt"
        flip(path, path.stat().st_size // 2)
    assert main(training(recipe, photos, out, "--resume")) == 2
    lines = lines_of(capsys.readouterr().err)
    assert "which is cut short or damaged" in lines[0]
    assert lines[1] == (
        "copy best.ckpt to last.ckpt to go on from the best epoch, or remove last.ckpt to train from the start"
    )
