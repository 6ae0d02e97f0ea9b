"""Images that hang, vanish or change, and the processes that read them killed, while a run trains."""

import collections
import io
import itertools
import os
import shutil
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from errors import message
from fault_injection import on_event
from many import children
from PIL import Image
from small_runs import STEPS_PER_EPOCH, Run, saved_step, training_images

from orthoproxy.data.loading import TIMEOUT_VARIABLE


@pytest.fixture
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch may take twenty seconds."""
    monkeypatch.setenv(TIMEOUT_VARIABLE, "20")


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def replace_by_pipe(path: Path) -> None:
    """Whoever opens it waits forever."""
    path.unlink()
    os.mkfifo(path)


SLOW = [pytest.param(damage, marks=pytest.mark.slow) for damage in (Path.unlink, replace_by_pipe)]


@pytest.mark.parametrize("damage", [truncate, *SLOW])
def test_an_image_damaged_while_training_is_named(damage: Callable, run_of_own: Run, photos, whole, hurry) -> None:
    run, first = run_of_own, STEPS_PER_EPOCH + 1
    damaged = [run.photos / path.relative_to(photos) for path in training_images(whole)][::4]

    def damage_some() -> None:  # of a batch, so that the run cannot get to the end of the epoch
        for path in damaged:
            damage(path)

    code, error = run.start(partial(on_event, f"step:{first}", damage_some)).end()
    saved = saved_step(run.out)
    assert code == 2 and sum(str(path) in message(error) for path in damaged) == 1, error
    assert first <= saved <= first + 4 and f"after step {saved}" in error  # not the end of the epoch before
    for path in damaged:
        path.unlink(missing_ok=True)
        shutil.copy2(photos / path.relative_to(run.photos), path)
    assert run.resumes_to(whole)


def test_an_image_replaced_while_training_is_reported(run_of_own: Run, photos: Path, whole: Path) -> None:
    replaced, other = run_of_own.photos / training_images(whole)[0].relative_to(photos), run_of_own.folder / "other.png"

    def replace() -> None:
        Image.new("RGB", (50, 50)).save(other)
        other.replace(replaced)

    code, error = run_of_own.start(partial(on_event, "step:2", replace)).end()
    assert code == 0 and str(replaced) in error, error


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize("step", [1, pytest.param(STEPS_PER_EPOCH + 2, marks=pytest.mark.slow)])
def test_a_killed_worker_costs_no_step(step: int, run: Run, whole: Path, hurry) -> None:
    def kill_worker() -> None:
        (worker,) = children(os.getpid())
        os.kill(worker, signal.SIGKILL)

    code, error = run.start(partial(on_event, f"step:{step}", kill_worker)).end()
    saved = saved_step(run.out)
    assert code == 1 and "SIGKILL" in message(error) and "fewer workers" in error, error
    assert saved >= step and f"after step {saved}" in error
    assert run.resumes_to(whole)


def loop_in_c() -> None:
    collections.deque(itertools.repeat(None), maxlen=0)  # ignores signals, and never releases the GIL


def crash() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


@pytest.mark.slow
@pytest.mark.parametrize("decode", [crash, loop_in_c])
def test_a_decoder_that_does_not_return_is_ended(decode: Callable, run_of_own: Run, photos, whole, hurry) -> None:
    hostile, opened = run_of_own.photos / training_images(whole)[3].relative_to(photos), Image.open

    def first() -> None:
        main_process, content = os.getpid(), hostile.read_bytes()

        def open_or_not(file: io.BytesIO, *args: object, **options: object) -> Image.Image:
            if os.getpid() != main_process and file.getvalue() == content:
                decode()
            return opened(file, *args, **options)

        Image.open = open_or_not

    code, error = run_of_own.start(first).end()
    assert code == 2 and str(hostile) in message(error), error
