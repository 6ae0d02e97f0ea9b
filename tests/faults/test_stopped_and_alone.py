"""Runs stopped by SIGTERM, as clusters do, and a run folder wanted by two."""

import multiprocessing
import os
import shutil
import signal
import time
from functools import partial
from pathlib import Path

import pytest
from errors import message
from fault_injection import on_event
from small_runs import STEPS_PER_EPOCH, Run, contents, difference, saved_step

from orthoproxy.cli.main import main
from orthoproxy.core.folder_lock import folder_lock

SIGTERM_TWICE, CTRL_C = [signal.SIGTERM] * 2, [signal.SIGINT]  # clusters may repeat it


# within and at the end of an epoch
@pytest.mark.parametrize(("signals", "step"), [
    (CTRL_C, 2), (SIGTERM_TWICE, 3), pytest.param(SIGTERM_TWICE, STEPS_PER_EPOCH, marks=pytest.mark.slow),
])  # fmt: skip
def test_a_signal_finishes_the_step_and_saves(signals: list[int], step: int, run: Run, whole: Path) -> None:
    def stop() -> None:
        for number in signals:
            os.kill(os.getpid(), number)

    code, error = run.start(partial(on_event, f"step:{step}", stop)).end()
    assert (code, saved_step(run.out)) == (128 + signals[0], step)
    assert f"after step {step}" in message(error) and "--resume" in error
    assert run.resumes_to(whole)


@pytest.mark.slow
@pytest.mark.parametrize("part", ["validation", "evaluation"])
def test_sigterm_does_not_wait_for_validation_or_evaluation(part: str, run: Run, whole: Path) -> None:
    receiver, sender = multiprocessing.Pipe(duplex=False)

    def wait() -> None:
        sender.send("waits")
        time.sleep(3600)

    moment = {"validation": f"step:{STEPS_PER_EPOCH}, inference:1", "evaluation": "report.html unflushed:1"}[part]
    job = run.start(partial(on_event, moment, wait))
    assert receiver.poll(300), job.end(0)
    os.kill(job.pid, signal.SIGTERM)
    code, error = job.end()
    assert code == 143 and message(error), error
    assert part == "evaluation" or saved_step(run.out) == STEPS_PER_EPOCH
    assert run.resumes_to(whole)


def test_a_second_run_in_the_same_folder_ends_at_once_and_the_first_goes_on(run: Run, whole: Path, capsys) -> None:
    here, there = multiprocessing.Pipe()

    def wait() -> None:
        there.send("waits")
        there.recv()

    job = run.start(partial(on_event, "step:2", wait))
    assert here.poll(300), job.end(0)
    before = contents(run.out)
    for more in ([], ["--resume"]):
        assert main(run.words(*more)) == 2 and contents(run.out) == before
        assert f"process {job.pid} on " in message(capsys.readouterr().err)
    here.send("go on")
    code, error = job.end()
    assert code == 0 and not difference(run.out, whole), error
    assert not (run.out / ".lock").exists()


@pytest.mark.parametrize("command", ["report", "export"])
def test_a_run_in_use_is_neither_reported_nor_exported(command: str, whole: Path, tmp_path: Path, capsys) -> None:
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    with folder_lock(run):
        before = contents(run)
        code = main([command, str(run), *(["--out", str(run / "model.onnx")] if command == "export" else [])])
        assert code == 2 and contents(run) == before
    assert f"process {os.getpid()} on " in message(capsys.readouterr().err)
