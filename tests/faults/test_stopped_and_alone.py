"""Runs stopped by SIGTERM, as clusters do, and a run folder wanted by two."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import time
from functools import partial
from pathlib import Path

import pytest
from fault_injection import kill_at, on_event
from small_runs import STEPS_PER_EPOCH, Started, difference, message, saved_step, training

from orthoproxy.cli.main import main
from orthoproxy.core.files import exclusive


@pytest.mark.parametrize("step", [2, STEPS_PER_EPOCH])  # within and at the end of an epoch
def test_sigterm_finishes_the_step_and_saves(
    step: int, recipe: Path, photos: Path, whole: Path, tmp_path: Path
) -> None:
    def terminate_twice() -> None:  # as clusters may
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)

    out, first = tmp_path / "run", partial(on_event, f"step:{step}", terminate_twice)
    code, error = Started(training(recipe, photos, out), tmp_path / "errors", first).end()
    assert (code, saved_step(out)) == (143, step)
    assert f"after step {step}" in message(error) and "--resume" in error
    assert main(training(recipe, photos, out, "--resume")) == 0 and not difference(out, whole)


@pytest.mark.parametrize("part", ["validation", "evaluation"])
def test_sigterm_does_not_wait_for_validation_or_evaluation(
    part: str, recipe: Path, photos: Path, whole: Path, tmp_path: Path
) -> None:
    receiver, sender = multiprocessing.Pipe(duplex=False)

    def wait() -> None:
        sender.send("waits")
        time.sleep(3600)

    moment = {"validation": f"step:{STEPS_PER_EPOCH}, inference:1", "evaluation": "report.html unflushed:1"}[part]
    out = tmp_path / "run"
    job = Started(training(recipe, photos, out), tmp_path / "errors", partial(on_event, moment, wait))
    assert receiver.poll(300), job.end(0)
    os.kill(job.pid, signal.SIGTERM)
    code, error = job.end()
    assert code == 143 and message(error), error
    assert part == "evaluation" or saved_step(out) == STEPS_PER_EPOCH
    assert main(training(recipe, photos, out, "--resume")) == 0 and not difference(out, whole)


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_second_run_in_the_same_folder_ends_at_once_and_the_first_goes_on(
    recipe: Path, photos: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, here, there = tmp_path / "run", *multiprocessing.Pipe()

    def wait() -> None:
        there.send("waits")
        there.recv()

    job = Started(training(recipe, photos, out), tmp_path / "errors", partial(on_event, "step:2", wait))
    assert here.poll(300), job.end(0)
    before = contents(out)
    for more in ([], ["--resume"]):
        assert main(training(recipe, photos, out, *more)) == 2 and contents(out) == before
        assert f"process {job.pid} on " in message(capsys.readouterr().err)
    here.send("go on")
    code, error = job.end()
    assert code == 0 and not difference(out, whole), error
    assert not (out / ".lock").exists()


def test_the_lock_of_a_killed_run_is_free(recipe: Path, photos: Path, whole: Path, tmp_path: Path) -> None:
    """Also while its workers, which were forked from it, live on for some seconds."""
    out = tmp_path / "run"
    code, error = Started(training(recipe, photos, out), tmp_path / "errors", partial(kill_at, "step:7")).end()
    assert code == 128 + signal.SIGKILL and (out / ".lock").exists(), error
    assert main(training(recipe, photos, out, "--resume")) == 0
    assert not difference(out, whole) and not (out / ".lock").exists()


@pytest.mark.parametrize("command", ["report", "export"])
def test_a_run_in_use_is_neither_reported_nor_exported(
    command: str, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    with exclusive(run):
        before = contents(run)
        code = main([command, str(run), *(["--out", str(run / "model.onnx")] if command == "export" else [])])
        assert code == 2 and contents(run) == before
    assert f"process {os.getpid()} on " in message(capsys.readouterr().err)
