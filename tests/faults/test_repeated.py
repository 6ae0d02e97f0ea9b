"""The same recipe gives the same bits, and `reproduce` tells whether it did."""

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
from records import record
from small_runs import Started, difference, lines_of, make_photos, training

from orthoproxy.cli.main import main
from orthoproxy.models import read_tensors
from orthoproxy.runs import train as jobs
from orthoproxy.runs.run_folder import Run


def test_it_does_not_depend_on_who_drew_before(recipe: Path, photos: Path, whole: Path, tmp_path: Path) -> None:
    def first() -> None:
        random.seed(1)
        np.random.seed(2)
        torch.manual_seed(3)

    out = tmp_path / "run"
    code, error = Started(training(recipe, photos, out, "--data.workers", 2), tmp_path / "errors", first=first).end()
    assert code == 0, error
    lost = difference(out, whole)
    record("repeatable", "the same run in two processes, with another number of workers", lost)
    assert lost == "nothing"


@pytest.mark.slow
def test_it_does_not_depend_on_the_process(recipe: Path, photos: Path, whole: Path, tmp_path: Path) -> None:
    out, variables = tmp_path / "run", {**os.environ, "PYTHONHASHSEED": "7"}
    program = [sys.executable, "-m", "orthoproxy", *training(recipe, photos, out)]
    done = subprocess.run(program, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lost = difference(out, whole)
    record("repeatable", "the same run in a process that was started anew, with other hashes", lost)
    assert lost == "nothing"


def test_another_seed_is_another_run(recipe: Path, photos: Path, whole: Path, tmp_path: Path) -> None:
    assert main(training(recipe, photos, tmp_path / "run", "--training.seed", 1)) == 0
    assert difference(tmp_path / "run", whole) == "the weights differ"


def test_deterministic_algorithms_are_on_while_training_only(
    recipe: Path, photos: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    during = []
    validate = jobs._validate
    monkeypatch.setattr(
        jobs, "_validate", lambda *args: during.append(torch.are_deterministic_algorithms_enabled()) or validate(*args)
    )
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    assert main(training(recipe, photos, tmp_path / "run", "--training.deterministic", "true")) == 0
    assert during == [True] * 3 and not torch.are_deterministic_algorithms_enabled()
    assert difference(tmp_path / "run", whole) == "nothing"


# ---- reproduce


@pytest.fixture
def own(whole: Path, tmp_path: Path) -> Path:
    """A copy of the run, to be changed."""
    return Path(shutil.copytree(whole, tmp_path / "run"))


def test_a_run_repeated_from_its_folder_is_equal(
    own: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = tmp_path / "run-again"
    code = main(["reproduce", str(own), "--json", str(tmp_path / "told.json")])
    told = capsys.readouterr().out.splitlines()
    lost = difference(again, whole)
    record("repeatable", "a run repeated by `orthoproxy reproduce`", lost)
    assert (code, lost) == (0, "nothing")
    assert told[-1] == f"{own}, repeated in {again}: equal: weights and scores are the same to the last bit"
    assert json.loads((tmp_path / "told.json").read_text()) == {"verdict": "equal", "differences": {}}


@pytest.fixture
def repeated(own: Path, tmp_path: Path) -> Path:
    """What stands for a repetition that is there already; `reproduce` then only compares."""
    return Path(shutil.copytree(own, tmp_path / "again"))


def compare(own: Path, repeated: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, list[str]]:
    capsys.readouterr()
    code = main(["reproduce", str(own), "--out", str(repeated)])
    return code, capsys.readouterr().out.splitlines()


def set_score(run: Path, value: float) -> None:
    path = run / "evaluation.json"
    scores = json.loads(path.read_text())
    scores["model"]["map@r"] = {"value": value, "low": 0.5, "high": 0.7}
    path.write_text(json.dumps(scores))


def change_weight(run: Path, by: float) -> str:
    from safetensors.torch import save_file

    path = run / "model" / "model.safetensors"
    tensors = {name: x.clone() for name, x in read_tensors(path, "run").items()}
    name = next(name for name, x in tensors.items() if x.is_floating_point())
    tensors[name].view(-1)[0] += by
    save_file(tensors, path)
    return f"weights: model/model.safetensors: 1 of {len(tensors)} tensors differ, by at most {by:.3g}"


def test_how_long_it_took_is_no_difference(own: Path, repeated: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for run, seconds in ((own, 1.0), (repeated, 2.0)):
        path = run / "evaluation.json"
        scores = json.loads(path.read_text())
        scores["with_same_group"] = {**scores, "seconds": seconds}  # as where images of a group are left out
        path.write_text(json.dumps(scores))
    code, lines = compare(own, repeated, capsys)
    assert code == 0 and "equal" in lines[0] and len(lines) == 1


def test_scores_within_their_intervals(own: Path, repeated: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = change_weight(repeated, 0.5)
    set_score(own, 0.6)
    set_score(repeated, 0.55)
    code, told = compare(own, repeated, capsys)
    assert code == 0 and "within interval: every score lies within" in told[0]
    assert (
        told[1] == line and told[2].startswith("scores: trained map@r: ") and told[2].endswith(", within the interval")
    )


def test_scores_outside_are_different(own: Path, repeated: Path, capsys: pytest.CaptureFixture[str]) -> None:
    set_score(own, 0.6)
    set_score(repeated, 0.75)
    code, told = compare(own, repeated, capsys)
    assert code == 1 and "different: see below in what" in told[0]
    assert [line.endswith(", outside the interval") for line in told[1:]] == [True]


def test_other_weights_without_other_scores_are_named(
    own: Path, repeated: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = change_weight(repeated, 0.25)
    code, told = compare(own, repeated, capsys)
    assert (code, told[1:]) == (0, [line]) and "within interval" in told[0]


def test_another_version_is_named(own: Path, repeated: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = repeated / "config.yaml"
    torch_version = Run(own).config.environment["torch"]
    path.write_text(path.read_text().replace(f"torch: {torch_version}", "torch: '1.0'"))
    code, told = compare(own, repeated, capsys)
    assert code == 0 and ": equal: " in told[0] and told[1:] == [f"versions: torch: {torch_version}, then 1.0"]


def test_other_images_are_different(own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "others"
    make_photos(root)
    for path in root.rglob("0.png"):
        shutil.copy(path.with_name("1.png"), path)
    again = tmp_path / "again"
    code = main(["reproduce", str(own), "--out", str(again), "--data.root", str(root)])
    told = capsys.readouterr().out
    assert code == 1 and "\ndata: " in told


@pytest.mark.parametrize("run", ["nowhere", "unfinished", "itself"])
def test_what_cannot_be_repeated(run: str, own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = {
        "nowhere": [str(tmp_path / "nowhere")],
        "unfinished": [str(own)],
        "itself": [str(own), "--out", str(own)],
    }[run]
    if run == "unfinished":
        shutil.rmtree(own / "model")
        (own / "report.html").unlink()
    assert main(["reproduce", *arguments]) == 2
    reason = {
        "nowhere": "no run in",
        "unfinished": "not trained to its end; go on with --resume, then repeat it",
        "itself": "is the run itself; give another folder",
    }[run]
    assert reason in lines_of(capsys.readouterr().err)[0]
