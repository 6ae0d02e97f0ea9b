"""One of four processes is killed while the others wait for it; the resumed job comes to the same bits."""

import sys
from pathlib import Path

import pytest
import torch.distributed as dist
from fault_injection import kill_at
from many import in_processes
from small_runs import difference, training

from orthoproxy.cli.main import main

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
