"""A run with the same configuration comes to the same bits, and `reproduce` tells whether it did."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from small_runs import Started, difference, make_photos, training
from torch.optim.optimizer import register_optimizer_step_post_hook

from orthoproxy.cli.main import main


def test_a_run_does_not_depend_on_earlier_random_numbers_or_workers(
    recipe: Path, photos: Path, whole: Path, tmp_path: Path
) -> None:
    def first() -> None:
        random.seed(1)
        np.random.seed(2)
        torch.manual_seed(3)

    out = tmp_path / "run"
    code, error = Started(training(recipe, photos, out, "--data.workers", 2), tmp_path / "errors", first).end()
    assert code == 0 and not difference(out, whole), error


@pytest.mark.slow
def test_a_run_does_not_depend_on_the_process(recipe: Path, photos: Path, whole: Path, tmp_path: Path) -> None:
    out, variables = tmp_path / "run", {**os.environ, "PYTHONHASHSEED": "7"}
    program = [sys.executable, "-m", "orthoproxy", *training(recipe, photos, out)]
    done = subprocess.run(program, env=variables, capture_output=True, text=True)
    assert done.returncode == 0 and not difference(out, whole), done.stderr


def test_another_seed_is_another_run(recipe: Path, photos: Path, whole: Path, tmp_path: Path) -> None:
    assert main(training(recipe, photos, tmp_path / "run", "--training.seed", 1)) == 0
    assert "weights" in difference(tmp_path / "run", whole)


def test_deterministic_algorithms_are_on_while_training_only(
    recipe: Path, photos: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    during = []
    note = lambda *_: during.append(torch.are_deterministic_algorithms_enabled())  # noqa: E731
    handle = register_optimizer_step_post_hook(note)
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    assert main(training(recipe, photos, tmp_path / "run", "--training.deterministic", "true")) == 0
    handle.remove()
    assert during and all(during) and not torch.are_deterministic_algorithms_enabled()
    assert not difference(tmp_path / "run", whole)


def reproduce(run: Path, out: Path, *more: object) -> tuple[int, dict]:
    """The exit code, and the comparison of the run with its repetition in `out`, which is made if missing."""
    told = run.with_name("comparison.json")
    code = main(["reproduce", str(run), "--out", str(out), "--json", str(told), *map(str, more)])
    return code, json.loads(told.read_text())


@pytest.fixture
def own(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "run"))


@pytest.fixture
def repeated(own: Path, tmp_path: Path) -> Path:
    """Stands for a repetition that is there already."""
    return Path(shutil.copytree(own, tmp_path / "again"))


def set_score(run: Path, value: float) -> None:
    path = run / "evaluation.json"
    scores = json.loads(path.read_text())
    scores["model"]["map@r"] = {"value": value, "low": 0.5, "high": 0.7}
    path.write_text(json.dumps(scores))


def change_weight(run: Path) -> None:
    path = run / "model" / "model.safetensors"
    tensors = {name: x.clone() for name, x in load_file(path).items()}
    next(x for x in tensors.values() if x.is_floating_point()).view(-1)[0] += 0.5
    save_file(tensors, path)


def test_a_run_repeated_from_its_folder_is_equal(own: Path, whole: Path, tmp_path: Path) -> None:
    assert reproduce(own, tmp_path / "again") == (0, {"verdict": "equal", "differences": {}})
    assert not difference(tmp_path / "again", whole)


@pytest.mark.parametrize(
    ("value", "expected"), [(0.6, (0, "equal")), (0.55, (0, "within interval")), (0.75, (1, "different"))]
)
def test_scores_within_and_outside_the_interval(
    value: float, expected: tuple[int, str], own: Path, repeated: Path
) -> None:
    set_score(own, 0.6)
    set_score(repeated, value)
    code, told = reproduce(own, repeated)
    assert (code, told["verdict"]) == expected and ("scores" in told["differences"]) == (value != 0.6)


def test_other_weights_without_other_scores_are_within_the_interval(own: Path, repeated: Path) -> None:
    change_weight(repeated)
    code, told = reproduce(own, repeated)
    assert (code, told["verdict"], [*told["differences"]]) == (0, "within interval", ["weights"])


def test_other_images_are_different(own: Path, tmp_path: Path) -> None:
    make_photos(tmp_path / "others")
    for path in (tmp_path / "others").rglob("0.png"):
        shutil.copy(path.with_name("1.png"), path)
    code, told = reproduce(own, tmp_path / "again", "--data.root", tmp_path / "others")
    assert code == 1 and "data" in told["differences"]


@pytest.mark.parametrize("case", ["nowhere", "unfinished", "itself"])
def test_what_cannot_be_repeated(case: str, own: Path, tmp_path: Path) -> None:
    run, out = (tmp_path / "nowhere" if case == "nowhere" else own), own if case == "itself" else tmp_path / "again"
    if case == "unfinished":
        shutil.rmtree(own / "model")
        (own / "report.html").unlink()
    assert main(["reproduce", str(run), "--out", str(out)]) == 2 and not (tmp_path / "again").exists()
