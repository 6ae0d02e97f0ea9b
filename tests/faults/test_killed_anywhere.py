"""The icons recipe, killed at thirty moments and resumed, comes to the same bits as without."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from records import record
from small_runs import Started, difference

from orthoproxy.cli.main import main
from orthoproxy.core.failpoints import VARIABLE
from orthoproxy.runs.build import split_table
from orthoproxy.runs.config import Config
from orthoproxy.runs.recipes import read_config
from orthoproxy.runs.run_folder import Run
from orthoproxy.runs.train import train

RECIPE = Path(__file__).parents[2] / "recipes" / "icons.yaml"
CLASSES, COPIES = 24, 8  # of the icons: enough for several steps an epoch, and few enough for thirty runs
STEPS = 5  # an epoch, at least
OVERRIDES = {
    "data.name": "folder",
    "data.test_fraction": 0.25,
    "data.validation_fraction": 0.25,
    "data.workers": 2,
    "encoder.image_size": 32,
    "data.resize": 32,
    "training.batch_size": 16,
    "training.epochs": 8,
    "training.warmup_epochs": 1,
    "training.patience": 1,
    "training.log_every": 1,
    "evaluation.draws": 20,
}
AFTER_STEPS = [1, 2, STEPS - 1, STEPS + 2, STEPS + 3, 2 * STEPS + 1]
PLACES = [
    *(f"last.ckpt {where}:{time}" for where in ("half", "unflushed", "flushed", "renamed") for time in (1, 2)),
    "previous.ckpt renamed:1",
    "best.ckpt half:1",
    "best.ckpt flushed:1",
    "metrics.jsonl half:3",
    "metrics.jsonl line:7",
    "validation:2",
    "config.yaml half:1",
    "model.safetensors half:1",
]
AFTER_TRAINING = [
    "model.safetensors flushed:2",
    "judgement:1",
    "evaluation.json half:1",
    "report.html half:1",
    "report.html flushed:1",
]
AT_RANDOM = [f"moment {number}" for number in range(3)]
MOMENTS = [*(f"step:{step}" for step in AFTER_STEPS), *PLACES, *AFTER_TRAINING, *AT_RANDOM]
WHOLE = {  # the recipe as it is, but for what ends it sooner or makes it go through more
    "data.validation_fraction": 0.2,
    "training.epochs": 4,
    "training.warmup_epochs": 1,
    "training.patience": 1,
    "training.log_every": 1,
}
ONE_AFTER_ANOTHER = [  # each in the process that goes on after the one before; an epoch has 22 steps
    "config.yaml half:1",
    "step:3",
    "last.ckpt flushed:1",
    "step:30",
    "last.ckpt half:1",
    "metrics.jsonl half:9",
    "step:11",
    "last.ckpt renamed:1",
    "validation:1",
    "step:28",
    "last.ckpt unflushed:1",
    "step:17",
    "model.safetensors half:1",
    "judgement:1",
]


@pytest.fixture(scope="module")
def reduced(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """What the recipe trains on a part of the icons with, a folder of classes."""
    root = tmp_path_factory.mktemp("icons")
    table = split_table(Config())
    for label, images in list(table.groupby("label"))[:CLASSES]:
        (root / str(label)).mkdir()
        for path in images["path"][:COPIES]:
            shutil.copy(path, root / str(label))
    return {"data.root": root, **OVERRIDES}


def options(overrides: dict[str, object]) -> list[str]:
    return [word for name, value in overrides.items() for word in (f"--{name}", str(value))]


def command(overrides: dict[str, object], out: Path) -> list[str]:
    return ["train", "--config", str(RECIPE), *options(overrides), "--out", str(out), "--resume"]


@pytest.fixture(scope="module")
def uninterrupted(reduced: dict[str, object], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """A run that nothing happened to, and the seconds that it took."""
    out = tmp_path_factory.mktemp("uninterrupted") / "run"
    begun = time.monotonic()
    code, error = Started(command(reduced, out), out.with_name("errors")).end(600)
    assert code == 0, error
    steps = Run(out).records()["step"].max()
    assert 2 * STEPS + 1 <= steps < 8 * STEPS, f"stopped early after {steps} steps, or the moments do not fit"
    return out, time.monotonic() - begun


def test_there_are_thirty_moments_of_each_kind_enough() -> None:
    assert len(MOMENTS) == len(set(MOMENTS)) == 30
    assert sum(step % STEPS > 0 for step in AFTER_STEPS) >= 5  # in the middle of an epoch
    assert sum("ckpt" in moment for moment in MOMENTS) >= 5


def kind(moment: str) -> str:
    place, timed, _ = moment.partition(":")
    if not timed:
        return "at any time"
    if "ckpt" in place:
        return "while a checkpoint is written"
    return "after a step" if place == "step" else "while something else is written, or images are judged"


def killed_at(moment: str) -> Callable[[], None] | None:
    """What a process does first so that it is killed at a moment; nothing, where the moment is not a place."""
    return (lambda: os.environ.update({VARIABLE: moment})) if ":" in moment else None


def killed_within(seconds: float, start: Callable[[], Started], out: Path) -> Started:
    """Start a run and kill it; one that is over before that, as the machine has less to do now, is begun again."""
    job = start()
    job.process.join(seconds)
    if job.process.is_alive():
        os.kill(job.pid, signal.SIGKILL)
        return job
    shutil.rmtree(out)
    return killed_within(seconds / 2, start, out)


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_and_resumed(
    moment: str, reduced: dict[str, object], uninterrupted: tuple[Path, float], tmp_path: Path
) -> None:
    (whole, seconds), out = uninterrupted, tmp_path / "run"
    start = partial(Started, command(reduced, out), tmp_path / "errors", first=killed_at(moment))
    job = start() if ":" in moment else killed_within(random.Random(moment).uniform(0.1, 0.9) * seconds, start, out)
    code, error = job.end(600)
    judged = moment in (*AFTER_TRAINING, *AT_RANDOM)  # for the others the same weights will do: a report takes as long
    if judged:
        assert main(command(reduced, out)) == 0
    else:
        train(read_config(RECIPE, options(reduced)), out, resume=True, judged=False)
    lost = difference(out, whole, judged)
    record("repeatable", f"the icons recipe killed (SIGKILL) {kind(moment)}, and resumed", lost, moment=moment)
    assert code == 128 + signal.SIGKILL, error
    steps = Run(out).records()["step"].tolist()
    assert lost == "nothing" and steps == sorted(steps)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_whole_recipe_killed_again_and_again(tmp_path: Path) -> None:
    """All its classes at their size; a loss at any of the moments would still show in the end."""
    whole, out = tmp_path / "whole", tmp_path / "run"
    code, error = Started(command(WHOLE, whole), tmp_path / "errors").end(600)
    assert code == 0, error
    for moment in ONE_AFTER_ANOTHER:
        code, error = Started(command(WHOLE, out), tmp_path / "errors", first=killed_at(moment)).end(600)
        assert code == 128 + signal.SIGKILL, f"{moment}\n{error}"
    code, error = Started(command(WHOLE, out), tmp_path / "errors").end(600)
    assert code == 0, error
    lost = difference(out, whole)
    tried = "the icons recipe on all its classes, one run killed (SIGKILL) again and again, and resumed"
    record("repeatable", tried, lost, times=len(ONE_AFTER_ANOTHER))
    assert lost == "nothing"
