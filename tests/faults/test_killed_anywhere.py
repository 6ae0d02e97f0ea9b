"""A run killed at any moment and resumed comes to the same bits as one that nothing happened to."""

from __future__ import annotations

import signal
from functools import partial
from pathlib import Path

import pytest
from fault_injection import kill_at
from small_runs import Started, difference, training

from orthoproxy.cli.main import main
from orthoproxy.runs.run_folder import RunFolder

VALIDATION = "step:10, inference:1"
EVALUATION = "step:15, model.safetensors renamed:1, inference:1"
MOMENTS = ["step:8", "last.ckpt half:2", VALIDATION]
MORE = [
    "metrics.jsonl half:3",
    EVALUATION,
    *(f"step:{step}" for step in (1, 4, 5, 11, 15)),
    *(f"last.ckpt {stage}" for stage in ("half:1", "unflushed:1", "flushed:2", "renamed:1", "renamed:2")),
    *(f"previous.ckpt {stage}:1" for stage in ("renamed",)),
    *(f"best.ckpt {stage}:1" for stage in ("half", "flushed", "renamed")),
    *(f"metrics.jsonl {stage}" for stage in ("unflushed:4", "flushed:7")),
    *(f"config.yaml {stage}:1" for stage in ("half", "renamed")),
    *(f"model.safetensors {stage}" for stage in ("half:1", "half:2", "flushed:2", "renamed:2")),
    *(f"evaluation.json {stage}:1" for stage in ("half", "renamed")),
    *(f"report.html {stage}:1" for stage in ("half", "flushed")),
]
SUCCESSIVE = [
    "config.yaml half:1", "step:3", "last.ckpt flushed:1", "step:1", "metrics.jsonl half:2", VALIDATION,
    "last.ckpt half:1", "model.safetensors half:1", "inference:1", "report.html half:1",
]  # fmt: skip


def assert_same(out: Path, whole: Path) -> None:
    steps = RunFolder(out).records()["step"].tolist()
    assert steps == sorted(steps) and not difference(out, whole)


@pytest.mark.parametrize("moment", [*MOMENTS, *(pytest.param(moment, marks=pytest.mark.slow) for moment in MORE)])
def test_killed_and_resumed(moment: str, recipe: Path, photos: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    code, error = Started(training(recipe, photos, out), tmp_path / "errors", partial(kill_at, moment)).end()
    assert code == 128 + signal.SIGKILL, error
    assert main(training(recipe, photos, out, "--resume")) == 0
    assert_same(out, whole)


@pytest.mark.slow
def test_killed_again_and_again(recipe: Path, photos: Path, whole: Path, tmp_path: Path) -> None:
    words = training(recipe, photos, tmp_path / "run", "--resume")
    for moment in SUCCESSIVE:
        code, error = Started(words, tmp_path / "errors", partial(kill_at, moment)).end()
        assert code == 128 + signal.SIGKILL, f"{moment}\n{error}"
    assert main(words) == 0
    assert_same(tmp_path / "run", whole)
