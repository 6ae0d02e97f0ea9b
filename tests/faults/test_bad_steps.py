"""Steps with a non-finite loss are skipped and counted; one too many ends the training with nothing lost."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
from small_runs import difference, message, saved_step, training, training_images

from orthoproxy.cli.main import main
from orthoproxy.models import read_tensors
from orthoproxy.runs.dataset import split_table
from orthoproxy.runs.run_folder import RunFolder

# features are computed once and cached, where a disk may damage them
FROZEN = ("--encoder.freeze=true", "--initialization.projection=random", "--initialization.proxies=random")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "orthoproxy" / "features"


def damage(cache: Path, out: Path) -> tuple[Path, Path]:
    """Put a NaN into an image's features; return a copy of the file before, and the image."""
    (file,) = cache.glob("*.npy")
    image = training_images(out)[7]
    features, row = np.load(file), split_table(RunFolder(out).config)["path"].tolist().index(str(image))
    before = Path(shutil.copy2(file, file.with_suffix(".before")))
    features[row, 0] = np.nan
    np.save(file, features)
    return before, image


def skipped(out: Path) -> list[tuple[int, str]]:
    lines = (out / "checkpoints" / "nonfinite_steps.csv").read_text().splitlines()
    return [(int(step), path) for step, path in csv.reader(lines)]


def test_steps_with_nan_are_skipped_and_counted(recipe: Path, photos: Path, cache: Path, tmp_path: Path) -> None:
    whole, out = tmp_path / "whole", tmp_path / "run"
    assert main(training(recipe, photos, whole, *FROZEN)) == 0
    _, image = damage(cache, whole)
    assert main(training(recipe, photos, out, *FROZEN)) == 0
    bad = RunFolder(out).records().dropna(subset="nonfinite_steps")
    assert bad["nonfinite_steps"].tolist() == [1, 2, 3]  # once an epoch
    rows = skipped(out)
    assert [step for step, path in rows if path == str(image)] == bad["step"].astype(int).tolist()
    assert len(rows) == 3 * 4  # all images of the batches
    assert all(x.isfinite().all() for x in read_tensors(out / "model" / "model.safetensors", "").values())
    # the other steps are there, with the learning rates that they would have
    losses, rates = (
        RunFolder(out).records().set_index("step")["loss"].dropna(),
        RunFolder(whole).records()["lr/proxies"].dropna(),
    )
    assert len(losses) == 12 and RunFolder(out).records()["lr/proxies"].dropna().isin(rates).all()


def test_one_skipped_step_too_many_ends_the_training_and_nothing_is_lost(
    recipe: Path, photos: Path, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, out, none = tmp_path / "whole", tmp_path / "run", "--training.max_nonfinite_steps=0"
    assert main(training(recipe, photos, whole, *FROZEN, none)) == 0
    before, image = damage(cache, whole)
    for more in ([], ["--resume"]):  # which comes to the same step
        assert main(training(recipe, photos, out, *FROZEN, none, *more)) in (1, 2)
        step = saved_step(out) + 1
        assert f"step {step}" in message(capsys.readouterr().err)
        assert {row[0] for row in skipped(out)} == {step} and str(image) in {path for _, path in skipped(out)}
    before.replace(next(cache.glob("*.npy")))
    assert main(training(recipe, photos, out, *FROZEN, none, "--resume")) == 0 and not difference(out, whole)
