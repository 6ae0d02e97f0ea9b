"""Runs told to stop by SIGTERM, as clusters do, and two runs told to use one folder."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import time
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from records import record
from small_runs import STEPS_AN_EPOCH, Started, difference, lines_of, saved_step, training

from orthoproxy.cli.main import main
from orthoproxy.core.errors import InputError
from orthoproxy.core.locks import locked
from orthoproxy.runs import evaluate as judging
from orthoproxy.runs import train as jobs
from orthoproxy.runs.run_folder import Run

GRACE = 30  # seconds that clusters give at least


@pytest.mark.parametrize("step", [2, STEPS_AN_EPOCH])  # in the midst and at the end of an epoch
def test_sigterm_finishes_the_step_and_saves(
    step: int, recipe: Path, photos: Path, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"

    def at_step(run: Run) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)  # clusters may say it twice

    code, error = Started(training(recipe, photos, out), tmp_path / "errors", step, at_step).end()
    saved, again = saved_step(out), main(training(recipe, photos, out, "--resume"))
    lost = difference(out, whole)
    record("faults", "SIGTERM, with a grace period, while training", lost, step=saved)
    assert (code, saved) == (143, step)
    assert lines_of(error) == [f"orthoproxy: stopped after step {step}; the run is saved; go on with --resume"]
    assert (again, lost) == (0, "nothing")


@pytest.mark.parametrize("part", ["validation", "judgement"])
def test_sigterm_does_not_wait_for_what_takes_long(
    part: str, recipe: Path, photos: Path, whole: Path, tmp_path: Path
) -> None:
    receiver, sender = multiprocessing.Pipe(duplex=False)

    def wait(*_: object) -> dict[str, float]:
        sender.send("there")
        time.sleep(600)
        return {}

    def first() -> None:
        if part == "validation":
            jobs._validate = wait
        else:
            judging.results_of = wait

    out = tmp_path / "run"
    job = Started(training(recipe, photos, out), tmp_path / "errors", first=first)
    assert receiver.poll(120), job.end(0)
    begun = time.monotonic()
    os.kill(job.pid, signal.SIGTERM)
    code, error = job.end()
    seconds, saved = time.monotonic() - begun, saved_step(out)
    again = main(training(recipe, photos, out, "--resume"))
    lost = difference(out, whole)
    record("faults", f"SIGTERM, with a grace period, in the {part}", lost, seconds=round(seconds, 1))
    assert code == 143 and seconds < GRACE, error
    if part == "validation":
        assert saved == STEPS_AN_EPOCH and "stopped after step 5; the run is saved; go on with" in lines_of(error)[0]
    else:
        assert lines_of(error) == ["orthoproxy: stopped"]
    assert (again, lost) == (0, "nothing")


def test_a_second_run_in_the_same_folder_is_refused_and_the_first_goes_on(
    recipe: Path, photos: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, here, there = tmp_path / "run", *multiprocessing.Pipe()

    def at_step(run: Run) -> None:
        there.send("there")
        there.recv()

    job = Started(training(recipe, photos, out), tmp_path / "errors", 2, at_step)
    assert here.poll(120), job.end(0)
    refusals = []
    for more in ([], ["--resume"]):
        before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
        capsys.readouterr()
        refusals.append((main(training(recipe, photos, out, *more)), lines_of(capsys.readouterr().err)))
        assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    here.send("go on")
    code, error = job.end()
    lost = difference(out, whole)
    record("faults", "two runs told to use the same folder", lost)
    for refused, lines in refusals:
        assert refused == 2 and len(lines) == 2
        assert lines[0].startswith(f"orthoproxy: --out: another job is writing to {out}: process {job.pid} on ")
        assert lines[1] == "wait for it, or give another folder"
    assert (code, lost) == (0, "nothing"), error
    assert not (out / ".lock").exists()


def test_a_killed_run_keeps_nobody_out(recipe: Path, photos: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"

    def at_step(run: Run) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    code, _ = Started(training(recipe, photos, out), tmp_path / "errors", STEPS_AN_EPOCH + 1, at_step).end()
    left, again = (out / ".lock").exists(), main(training(recipe, photos, out, "--resume"))
    lost = difference(out, whole)
    record("faults", "a killed run followed by another in its folder", lost)
    assert code == 128 + signal.SIGKILL and left
    assert (again, lost) == (0, "nothing") and not (out / ".lock").exists()


def _hold(folder: Path, pipe: Connection) -> None:
    with locked(folder):
        pipe.send("held")
        pipe.recv()


@pytest.mark.parametrize("verb", ["report", "export"])
def test_a_run_that_is_written_to_is_neither_reported_nor_exported_anew(
    verb: str, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, (here, there) = Path(shutil.copytree(whole, tmp_path / "run")), multiprocessing.Pipe()
    holder = multiprocessing.get_context("fork").Process(target=_hold, args=(run, there))
    holder.start()
    assert here.recv() == "held"
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    code = main([verb, str(run), *(["--out", str(run / "model.onnx")] if verb == "export" else [])])
    said = capsys.readouterr().err
    after = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    here.send("go on")
    holder.join()
    record("faults", f"{verb} of a run that another job is writing to", "nothing" if after == before else "a file")
    assert (code, after) == (2, before)
    assert said.startswith(f"orthoproxy: {verb}: another job is writing to {run}: process {holder.pid} on ")


def _take_in_turn(folder: Path, counter: Path, times: int) -> None:
    done = 0
    while done < times:
        try:
            with locked(folder):
                counter.write_text(str(int(counter.read_text()) + 1))
                done += 1
        except InputError:
            time.sleep(0.001)


def test_a_lock_is_held_by_one_however_often_it_is_taken_and_removed(tmp_path: Path) -> None:
    (tmp_path / "counter").write_text("0")
    context = multiprocessing.get_context("fork")
    arguments = (tmp_path / "folder", tmp_path / "counter", 200)
    processes = [context.Process(target=_take_in_turn, args=arguments) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    counted = int((tmp_path / "counter").read_text())
    record(
        "faults", "a folder's lock taken 600 times by three processes", "an addition" if counted < 600 else "nothing"
    )
    assert counted == 600 and not (tmp_path / "folder").exists()
