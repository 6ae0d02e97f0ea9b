"""Steps with a non-finite loss are skipped and counted; one too many ends training with the run saved."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from small_runs import difference, message, training, training_images

from orthoproxy.cli.main import main
from orthoproxy.models import read_tensors
from orthoproxy.runs.dataset import split_table
from orthoproxy.runs.run_folder import RunFolder

# features are computed once and cached, where a disk may damage them
FROZEN = ("--encoder.freeze=true", "--initialization.projection=random", "--initialization.proxies=random")


@pytest.fixture(scope="module")
def undamaged(recipe: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run whose cached features the later ones use."""
    folder = tmp_path_factory.mktemp("frozen")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        assert main(training(recipe, photos, folder / "run", *FROZEN)) == 0
        yield folder / "run"


@pytest.fixture(scope="module")
def damaged_image(undamaged: Path) -> Path:
    """An image whose cached features hold a NaN from now on."""
    image = training_images(undamaged)[7]
    (file,) = undamaged.with_name("cache").rglob("*.npy")
    features, row = np.load(file), split_table(RunFolder(undamaged).config)["path"].tolist().index(str(image))
    features[row, 0] = np.nan
    np.save(file, features)
    return image


def skipped(out: Path) -> list[tuple[int, str]]:
    lines = (out / "checkpoints" / "nonfinite_steps.csv").read_text().splitlines()
    return [(int(step), path) for step, path in csv.reader(lines)]


def test_non_finite_steps_are_skipped_counted_and_listed(
    recipe: Path,
    photos: Path,
    undamaged: Path,
    damaged_image: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "run"
    assert main(training(recipe, photos, out, *FROZEN)) == 0
    records, expected = RunFolder(out).records(), RunFolder(undamaged).records()
    bad = records.dropna(subset="nonfinite_steps")
    assert bad["nonfinite_steps"].tolist() == [1, 2, 3]  # once an epoch
    rows = skipped(out)
    assert [step for step, path in rows if path == str(damaged_image)] == bad["step"].tolist()
    assert len(rows) == 3 * 4  # all images of the batches
    assert all(x.isfinite().all() for x in read_tensors(out / "model" / "model.safetensors", "").values())
    # the other steps are there, with the learning rates that they would have had
    losses = records.dropna(subset="loss")
    assert len(losses) == 12
    assert set(zip(losses["step"], losses["lr/proxies"], strict=True)) < set(
        zip(expected["step"], expected["lr/proxies"], strict=True)
    )

    # too many: ends in the second epoch, and the resumed run comes to the same weights
    limited = training(recipe, photos, tmp_path / "limited", *FROZEN, "--training.max_nonfinite_steps=1")
    capsys.readouterr()
    assert main(limited) == 1
    assert str(tmp_path / "limited" / "checkpoints" / "nonfinite_steps.csv") in message(capsys.readouterr().err)
    assert skipped(tmp_path / "limited") == rows[:8] and not RunFolder(tmp_path / "limited").has_model
    assert main([*limited, "--resume"]) == 0
    assert skipped(tmp_path / "limited") == rows and "weights" not in difference(tmp_path / "limited", out)
