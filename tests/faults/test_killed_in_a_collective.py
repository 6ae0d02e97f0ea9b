"""One of four processes is killed while the others wait for it in a collective; the job goes on to the same bits."""

from __future__ import annotations

import os
import re
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from many import in_processes
from records import record
from small_runs import RECIPE, difference, make_photos, training

import orthoproxy.training.loop as loop
from orthoproxy.cli.main import main
from orthoproxy.runs.run_folder import Run

PROCESSES, VICTIM, STEP = (
    4,
    2,
    7,
)  # five steps an epoch: goes on from the end of the first


def _train(arguments: list[str], errors: Path, killed: bool) -> int:
    """Train in this process; the victim dies where the others already gather the embeddings of a step."""
    sys.stdout = sys.stderr = (errors / f"{dist.get_rank()}.txt").open("a", buffering=1)
    gather, calls = loop.all_gather_rows, 0

    def gather_or_die(*args: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 2 * STEP - 1 and dist.get_rank() == VICTIM:  # embeddings and labels are gathered in each step
            os.kill(os.getpid(), signal.SIGKILL)
        return gather(*args)

    if killed:
        loop.all_gather_rows = gather_or_die
    return main(arguments)


@pytest.mark.slow
def test_one_of_four_processes_killed_in_a_collective_loses_nothing(tmp_path: Path) -> None:
    make_photos(tmp_path / "photos")
    (tmp_path / "recipe.yaml").write_text(RECIPE)

    def run(out: str, *more: str, killed: tuple[int, ...] = ()) -> tuple[list[int], str]:
        words = training(
            tmp_path / "recipe.yaml", tmp_path / "photos", tmp_path / out, "--training.deterministic", "true", *more
        )
        (tmp_path / f"errors of {out}").mkdir(exist_ok=True)
        codes = in_processes(PROCESSES, _train, words, tmp_path / f"errors of {out}", bool(killed), killed=killed)
        return codes, "\n".join(path.read_text() for path in (tmp_path / f"errors of {out}").iterdir())

    codes, said = run("whole")
    assert codes == [0] * PROCESSES, said
    codes, said = run("killed", killed=(VICTIM,))
    assert 0 not in codes and not Run(tmp_path / "killed").finished, said
    assert re.search(r"orthoproxy: .*process", said) and "Traceback" not in said, said
    codes, said = run("killed", "--resume")
    assert codes == [0] * PROCESSES, said
    lost = difference(tmp_path / "killed", tmp_path / "whole")
    record("repeatable", "one of four processes killed in a collective", lost, moment=f"step {STEP}")
    assert lost == "nothing"
