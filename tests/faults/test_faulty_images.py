"""Images that hang, vanish or change, and the processes that read them killed, while a run trains."""

from __future__ import annotations

import collections
import itertools
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from records import record
from small_runs import STEPS_AN_EPOCH, Started, children_of, difference, lines_of, saved_step, trained_on, training

from orthoproxy.cli.main import main
from orthoproxy.core.errors import InputError
from orthoproxy.data import scan_images
from orthoproxy.data.read_timeout import VARIABLE, reading
from orthoproxy.runs.run_folder import Run

linux_only = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks for processes in /proc")


@pytest.fixture
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file may take two seconds."""
    monkeypatch.setenv(VARIABLE, "2")


def delete(path: Path) -> None:
    path.unlink()


def cut_in_half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def put_a_pipe(path: Path) -> None:
    """Whoever opens it waits for ever."""
    path.unlink()
    os.mkfifo(path)


SPOILT = {
    delete: ("an image deleted while training", "No such file or directory"),
    cut_in_half: ("an image cut short while training", "truncated"),
    put_a_pipe: ("an image that hangs on opening, while training", "reading it takes longer than 2 seconds"),
}


@pytest.mark.parametrize("spoil", SPOILT, ids=lambda spoil: spoil.__name__)
def test_an_image_spoilt_while_training_is_named_and_nothing_is_lost(
    spoil: Callable[[Path], None], recipe: Path, own_photos: Path, photos: Path, whole: Path, tmp_path: Path, hurry
) -> None:
    out, (tried, reason) = tmp_path / "run", SPOILT[spoil]
    spoilt = [own_photos / path.relative_to(photos) for path in trained_on(whole)][::4]

    def at_step(run: Run) -> None:
        for path in spoilt:  # some of a batch, so that the run cannot get to the end of the epoch
            spoil(path)

    job = Started(training(recipe, own_photos, out), tmp_path / "errors", STEPS_AN_EPOCH + 1, at_step)
    code, error = job.end()
    lines = lines_of(error)
    saved = saved_step(out)
    for path in spoilt:
        path.unlink(missing_ok=True)
        shutil.copy2(photos / path.relative_to(own_photos), path)
    again = main(training(recipe, own_photos, out, "--resume"))
    lost = difference(out, whole)
    record("faults", tried, lost, step=saved)
    assert code == 2 and len(lines) == 2 and lines[1].startswith("replace the file or leave it out"), error
    named = [path for path in spoilt if lines[0].startswith(f"orthoproxy: cannot read the image {path}: ")]
    assert len(named) == 1 and reason in lines[0]
    # at the step that could not be taken, and not after the epoch before
    assert STEPS_AN_EPOCH < saved <= STEPS_AN_EPOCH + 5 and f"saved after step {saved}" in error
    assert (again, lost) == (0, "nothing")


def test_an_image_replaced_while_training_is_told(recipe: Path, own_photos: Path, photos: Path, whole: Path, tmp_path):
    replaced = own_photos / trained_on(whole)[0].relative_to(photos)

    def at_step(run: Run) -> None:
        other = replaced.with_suffix(".tmp")
        Image.new("RGB", (50, 50)).save(other, format="png")
        other.replace(replaced)

    code, error = Started(training(recipe, own_photos, tmp_path / "run"), tmp_path / "errors", 2, at_step).end()
    record("faults", "an image replaced by another one while training", "an image" if code else "nothing")
    assert code == 0, error
    assert f"note: images that changed or went away during the training: 1, for example {replaced}" in error


@linux_only
@pytest.mark.parametrize("step", [1, STEPS_AN_EPOCH + 2])
def test_a_killed_worker_costs_no_step(step: int, recipe: Path, photos: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"

    def at_step(run: Run) -> None:
        (worker,) = children_of(os.getpid())
        os.kill(worker, signal.SIGKILL)

    code, error = Started(training(recipe, photos, out), tmp_path / "errors", step, at_step).end()
    lines, saved = lines_of(error), saved_step(out)
    again = main(training(recipe, photos, out, "--resume"))
    lost = difference(out, whole)
    record("faults", "a worker of the loader killed (SIGKILL)", lost, step=saved)
    assert code == 1 and len(lines) == 2, error
    assert "a process that reads images (data.workers) was killed (SIGKILL)" in lines[0]
    assert "lower data.workers or training.batch_size" in lines[1]
    assert saved >= step and f"saved after step {saved}; --resume goes on from there" in error
    assert (again, lost) == (0, "nothing")


def loop_in_c(path: str) -> None:
    collections.deque(itertools.repeat(None), maxlen=0)  # never looks at signals, and never gives the lock away


def loop_in_python(path: str) -> None:
    while True:
        try:
            time.sleep(0.01)
        except Exception:  # a decoder may catch whatever it likes
            continue


def crash(path: str) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


DECODERS = {
    loop_in_c: "reading it takes longer than 2 seconds",
    loop_in_python: "reading it takes longer than 2 seconds",
    crash: "the decoder crashed (SIGSEGV)",
}


@pytest.mark.parametrize("decode", DECODERS, ids=lambda decode: decode.__name__)
def test_a_decoder_that_does_not_come_back_is_ended_and_the_image_named(
    decode: Callable[[str], None], recipe: Path, own_photos: Path, photos: Path, whole: Path, tmp_path: Path, hurry
) -> None:
    hostile, opened = own_photos / trained_on(whole)[3].relative_to(photos), Image.open

    def open_or_not(path: str, *args: object, **options: object) -> Image.Image:
        if str(path) == str(hostile) and os.getpid() != runs:
            decode(path)
        return opened(path, *args, **options)

    def first() -> None:
        nonlocal runs
        runs = os.getpid()
        Image.open = open_or_not

    runs, begun = 0, time.monotonic()
    code, error = Started(training(recipe, own_photos, tmp_path / "run"), tmp_path / "errors", first=first).end()
    lines = lines_of(error)
    record(
        "faults", f"a decoder that does not come back ({decode.__name__})", "nothing" if code == 2 else "the run hung"
    )
    assert code == 2 and len(lines) == 2
    assert lines[0].startswith(f"orthoproxy: cannot read the image {hostile}: {DECODERS[decode]}")
    assert lines[1].startswith("replace the file or leave it out")
    assert time.monotonic() - begun < 60


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_hangs_counts_as_one_that_cannot_be_read(workers: int, tmp_path: Path, hurry) -> None:
    for name in ("a", "c"):
        Image.new("RGB", (20, 10)).save(tmp_path / f"{name}.png")
    os.mkfifo(tmp_path / "b.png")
    found = scan_images([str(tmp_path / f"{name}.png") for name in "abc"], workers)
    expected = ["", f"reading it takes longer than 2 seconds, which {VARIABLE} allows", ""]
    right = (found["width"].tolist(), found["error"].tolist()) == ([20, 0, 20], expected)
    record("faults", "an image that hangs on opening, while looking through all", "nothing" if right else "the others")
    assert right, found


def test_an_alarm_of_somebody_else_rings_all_the_same(hurry) -> None:
    rung = []
    handler = signal.signal(signal.SIGALRM, lambda *_: rung.append(time.monotonic()))
    before = signal.setitimer(signal.ITIMER_REAL, 0.5)
    begun = time.monotonic()
    try:
        with reading("a.png"):
            time.sleep(0.2)
        time.sleep(0.6)
    finally:
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, *before)
    assert len(rung) == 1 and 0.4 < rung[0] - begun < 0.8


@pytest.mark.parametrize("given", ["soon", "-1", "nan", "inf"])
def test_a_limit_that_is_none(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, given)
    with (
        pytest.raises(InputError, match=rf"{VARIABLE}: '{given}' is no number of seconds; give one such as 60"),
        reading("a"),
    ):
        pass


def test_the_limit_does_not_change_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    found = []
    for seconds in ("0", "60"):
        monkeypatch.setenv(VARIABLE, seconds)
        found.append(scan_images([str(tmp_path / "a.png")], hashes=True).to_dict("records"))
    assert found[0] == found[1] and found[0][0]["width"] == 7
