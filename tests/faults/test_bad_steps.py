"""Steps with a non-finite loss are skipped and counted; one too many ends training with the run saved."""

import csv
from pathlib import Path

import numpy as np
import pandas as pd
from errors import message
from safetensors.torch import load_file, save_file
from small_runs import difference, training, training_images

from orthoproxy.cli.main import main
from orthoproxy.models.weights import read_tensors
from orthoproxy.runs.dataset import split_table
from orthoproxy.runs.run_folder import RunFolder

# features are computed once and cached, where a disk may damage them
FROZEN = ("--encoder.freeze=true", "--initialization.projection=random", "--initialization.proxies=random")


def skipped(out: Path) -> list[tuple[int, str]]:
    lines = (out / "checkpoints" / "nonfinite_steps.csv").read_text().splitlines()
    return [(int(step), path) for step, path in csv.reader(lines)]


def test_non_finite_steps_are_skipped_counted_and_listed(recipe, photos, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    sound, out, limited = (tmp_path / name for name in ("sound", "run", "limited"))
    assert main(training(recipe, photos, sound, *FROZEN)) == 0
    damaged = str(training_images(sound)[7])
    (file,) = (tmp_path / "cache").rglob("*.safetensors")
    tensors = load_file(file)
    tensors["features"][split_table(RunFolder(sound).config)["path"].tolist().index(damaged), 0] = np.nan
    save_file(tensors, file)

    assert main(training(recipe, photos, out, *FROZEN)) == 0
    records, expected = RunFolder(out).records(), RunFolder(sound).records()
    bad = records.dropna(subset="nonfinite_steps")
    assert bad["nonfinite_steps"].tolist() == [1, 2, 3]  # once an epoch
    rows = skipped(out)
    assert [step for step, path in rows if path == damaged] == bad["step"].tolist()
    assert len(rows) == 3 * 4  # all images of the batches
    assert all(x.isfinite().all() for x in read_tensors(out / "model" / "model.safetensors", "").values())
    rates = expected.dropna(subset="loss").set_index("step")["lr/proxies"].drop(bad["step"])
    pd.testing.assert_series_equal(records.dropna(subset="loss").set_index("step")["lr/proxies"], rates)

    # too many: ends in the second epoch, and the resumed run comes to the same weights
    words = training(recipe, photos, limited, *FROZEN, "--training.max_nonfinite_steps=1")
    capsys.readouterr()
    assert main(words) == 1
    assert str(limited / "checkpoints" / "nonfinite_steps.csv") in message(capsys.readouterr().err)
    assert skipped(limited) == rows[:8] and not RunFolder(limited).has_model
    assert main([*words, "--resume"]) == 0
    assert skipped(limited) == rows and "weights" not in difference(limited, out)
