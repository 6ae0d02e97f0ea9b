"""Steps whose loss is not a number: left out and counted, and one too many ends the training with nothing lost."""

from __future__ import annotations

import csv
import math
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from records import record
from small_runs import difference, lines_of, saved_step, trained_on, training

from orthoproxy.cli.main import main
from orthoproxy.models import read_tensors
from orthoproxy.runs.build import split_table
from orthoproxy.runs.run_folder import Run

# features are computed once and kept, where a disk may damage them
FROZEN = ("--encoder.freeze=true", "--initialisation.projection=random", "--initialisation.proxies=random")


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "orthoproxy" / "features"


def damage(kept: Path, out: Path) -> tuple[Path, Path]:
    """Make an image's features no numbers; return a copy of the file as it was, and the image."""
    (file,) = kept.glob("*.npy")
    image = trained_on(out)[7]
    features, row = np.load(file), split_table(Run(out).config)["path"].tolist().index(str(image))
    before = Path(shutil.copy2(file, file.with_suffix(".before")))
    features[row, 0] = np.nan
    np.save(file, features)
    return before, image


def test_bad_steps_are_left_out_and_counted(
    recipe: Path, photos: Path, kept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "run"
    assert main(training(recipe, photos, whole, *FROZEN)) == 0
    _, image = damage(kept, whole)
    capsys.readouterr()
    code, error = main(training(recipe, photos, out, *FROZEN)), capsys.readouterr().err
    bad = Run(out).records().dropna(subset="bad_batches")
    weights = read_tensors(out / "model" / "model.safetensors", "")
    finite = all(bool(x.isfinite().all()) for x in weights.values())
    record("faults", "NaN in a batch, within the limit", "nothing" if code == 0 and finite else "the weights")
    assert code == 0 and finite
    assert bad["bad_batches"].tolist() == [1, 2, 3]  # once an epoch
    lines = (out / "checkpoints" / "bad_batches.csv").read_text().splitlines()
    rows = [(int(step), path) for step, path in csv.reader(lines)]
    assert [step for step, path in rows if path == str(image)] == bad["step"].astype(int).tolist()
    assert len(rows) == 3 * 4  # all images of the batches
    assert error.count("the step is left out, ") == 3 and "3 of at most 10" in error
    # what was not left out is there, and the schedule goes on as it would
    losses, rates = Run(out).records().set_index("step")["loss"].dropna(), Run(whole).records()["rate/proxies"].dropna()
    assert len(losses) == 12 and Run(out).records()["rate/proxies"].dropna().isin(rates).all()


def test_one_bad_step_too_many_ends_the_training_with_the_run_saved(
    recipe: Path, photos: Path, kept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, out, none = tmp_path / "whole", tmp_path / "run", "--training.max_bad_batches=0"
    assert main(training(recipe, photos, whole, *FROZEN, none)) == 0
    before, image = damage(kept, whole)
    refusals = []
    for more in ([], ["--resume"]):  # which comes to the same step
        capsys.readouterr()
        refusals.append((main(training(recipe, photos, out, *FROZEN, none, *more)), lines_of(capsys.readouterr().err)))
    saved = saved_step(out)
    before.replace(next(kept.glob("*.npy")))  # mended
    again = main(training(recipe, photos, out, *FROZEN, none, "--resume"))
    lost = difference(out, whole)
    record("faults", "NaN in a batch, beyond the limit", lost, step=saved)
    assert refusals[0] == refusals[1]
    code, lines = refusals[0]
    assert code == 2 and len(lines) == 2
    assert lines[0].startswith(f"orthoproxy: the loss is nan at step {saved + 1}, of {photos}")
    assert lines[0].endswith(" and 1 more; 1 such steps, and training.max_bad_batches is 0")
    assert lines[1].endswith("the run is saved as before that step")
    rows = pd.read_csv(out / "checkpoints" / "bad_batches.csv", names=["step", "path"])
    assert str(image) in rows["path"].tolist() and set(rows["step"]) == {saved + 1}
    assert (again, lost) == (0, "nothing") and math.isfinite(Run(out).records()["loss"].dropna().sum())
