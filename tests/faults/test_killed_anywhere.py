"""A run killed at any moment and resumed comes to the same bits as one that nothing happened to; so does a job."""

import signal
import sys
from functools import partial
from pathlib import Path

import pytest
import torch.distributed as dist
import yaml
from fault_injection import kill_at
from many import in_processes
from small_runs import RECIPE, Run, difference, training

from orthoproxy.cli.main import main
from orthoproxy.runs.run_folder import RunFolder

VALIDATION = "step:10, inference:1"
EVALUATION = "step:15, model.safetensors renamed:1, inference:1"
STAGES = {
    "step": "1 4 5 11 15", "last.ckpt half": "1 2", "last.ckpt unflushed": "1", "last.ckpt flushed": "2",
    "last.ckpt renamed": "1 2", "previous.ckpt renamed": "1", "best.ckpt half": "1", "best.ckpt flushed": "1",
    "best.ckpt renamed": "1", "metrics.jsonl half": "3", "metrics.jsonl unflushed": "4", "metrics.jsonl flushed": "7",
    "config.yaml half": "1", "config.yaml renamed": "1", "model.safetensors half": "1 2",
    "model.safetensors flushed": "2", "model.safetensors renamed": "2", "evaluation.json half": "1",
    "evaluation.json renamed": "1", "report.html half": "1", "report.html flushed": "1",
}  # fmt: skip
MORE = [VALIDATION, EVALUATION, *(f"{stage}:{count}" for stage, counts in STAGES.items() for count in counts.split())]
SUCCESSIVE = [
    "config.yaml half:1", "step:3", "last.ckpt flushed:1", "step:1", "metrics.jsonl half:2", VALIDATION,
    "last.ckpt half:1", "model.safetensors half:1", "inference:1", "report.html half:1",
]  # fmt: skip


def assert_same_after_resuming(run: Run, whole: Path) -> None:
    assert run.resumes_to(whole) and not (run.out / ".lock").exists()
    steps = RunFolder(run.out).records()["step"].tolist()
    assert steps == sorted(steps)


@pytest.mark.parametrize("moment", ["step:8", *(pytest.param(moment, marks=pytest.mark.slow) for moment in MORE)])
def test_killed_and_resumed(moment: str, run: Run, whole: Path) -> None:
    code, error = run.start(partial(kill_at, moment)).end()
    assert code == 128 + signal.SIGKILL and (run.out / ".lock").exists(), error
    assert_same_after_resuming(run, whole)


@pytest.mark.slow
def test_killed_again_and_again(run: Run, whole: Path) -> None:
    for moment in SUCCESSIVE:
        code, error = run.start(partial(kill_at, moment), "--resume").end()
        assert code == 128 + signal.SIGKILL, f"{moment}\n{error}"
    assert_same_after_resuming(run, whole)


def test_averaged_low_rank_weights_and_past_embeddings_resume(photos: Path, tmp_path: Path) -> None:
    values = yaml.safe_load(RECIPE)
    values["encoder"] |= {"lora_rank": 2, "drop_path": 0.1}  # which draws random numbers
    values["training"] |= {"ema_decay": 0.8, "epochs": 2, "gradient_accumulation_steps": 2}
    values["loss"] = {"name": "ContrastiveLoss", "memory_size": 12}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(values))
    whole, run = Run(recipe, photos, tmp_path / "whole"), Run(recipe, photos, tmp_path / "killed")
    run.folder.mkdir()
    assert main(whole.words()) == 0
    assert run.start(partial(kill_at, "step:3")).end()[0] == 128 + signal.SIGKILL
    assert_same_after_resuming(run, whole.out)
    assert {"validation/map@r", "validation/not_averaged/map@r"} < set(RunFolder(run.out).records())


PROCESSES, VICTIM, STEP = 4, 2, 7  # of five steps an epoch


def _train(arguments: list[str], errors: Path, killed: bool) -> int:
    sys.stdout = sys.stderr = (errors / f"{dist.get_rank()}.txt").open("a", buffering=1)
    if killed and dist.get_rank() == VICTIM:
        kill_at(f"step:{STEP}")
    return main(arguments)


@pytest.mark.slow
def test_one_of_four_processes_killed_loses_nothing(recipe: Path, photos: Path, tmp_path: Path) -> None:
    def run(out: str, *more: str, killed: tuple[int, ...] = ()) -> tuple[list[int], str]:
        more = ("--training.deterministic", "true", *more)
        words = training(recipe, photos, tmp_path / out, *more)
        errors = tmp_path / f"errors of {out}"
        errors.mkdir(exist_ok=True)
        codes = in_processes(PROCESSES, _train, words, errors, bool(killed), killed=killed)
        return codes, "\n".join(path.read_text() for path in errors.iterdir())

    assert run("whole")[0] == [0] * PROCESSES
    codes, errors = run("killed", killed=(VICTIM,))
    assert codes == [1] * (PROCESSES - 1) and "orthoproxy: rank" in errors, errors
    codes, errors = run("killed", "--resume")
    assert codes == [0] * PROCESSES, errors
    assert not difference(tmp_path / "killed", tmp_path / "whole")
