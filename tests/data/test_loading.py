"""Errors of worker processes: unreadable items, killed and crashed workers, reads that never end."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from errors import error_of
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from orthoproxy.core.errors import InputError, WorkerLost
from orthoproxy.data import EvaluationImages, TrainingImages, evaluation_transform, training_transform
from orthoproxy.data.datasets import PathList
from orthoproxy.data.loading import TIMEOUT_VARIABLE, iterate_batches, loader_options, noting_file

linux_only = pytest.mark.skipif(not Path("/proc/self").exists(), reason="signals of Linux")


class Rows(Dataset):
    """Items 0 to 19; item 13 is what `fault` makes of it."""

    def __init__(self, fault: Callable[[], object]) -> None:
        self.fault, self.main = fault, os.getpid()

    def __len__(self) -> int:
        return 20

    def __getitem__(self, row: int) -> object:
        with noting_file(f"{row}.png"):
            return self.fault() if row == 13 and os.getpid() != self.main else row


def wait() -> None:
    time.sleep(1000)


def kill(number: int = signal.SIGKILL) -> None:
    os.kill(os.getpid(), number)


def run_out_of_memory() -> None:
    raise MemoryError


def read(fault: Callable[[], object], workers: int = 2) -> tuple[list[int], BaseException]:
    """Read until the error; return what came before it, and the error."""
    rows: list[int] = []
    loader = DataLoader(Rows(fault), batch_size=2, **loader_options(workers))
    with pytest.raises((InputError, WorkerLost, MemoryError)) as caught:
        for batch in iterate_batches(loader):
            rows += batch.tolist()
    return rows, caught.value


@pytest.fixture
def short_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TIMEOUT_VARIABLE, "20")  # a busy machine takes seconds to start a worker


@linux_only
@pytest.mark.slow
@pytest.mark.parametrize("fault", [wait, partial(kill, signal.SIGSEGV)], ids=["endless", "crash"])
def test_a_read_that_never_ends_or_crashes_is_an_error_with_the_file(fault: Callable, short_timeout: None) -> None:
    rows, error = read(fault)
    # a crash is noticed at once, maybe before the last batches of the other worker have arrived
    assert rows == list(range(12))[: len(rows)] and isinstance(error, InputError) and error.path == "13.png"


@linux_only
def test_a_killed_worker_is_not_the_fault_of_the_file_and_interrupts_no_step(short_timeout: None) -> None:
    batches = iterate_batches(DataLoader(Rows(kill), batch_size=2, **loader_options(2)))
    for _ in range(3):
        next(batches)
    time.sleep(1)  # a step, during which a worker reads on and dies
    with pytest.raises(WorkerLost, match="SIGKILL"):
        list(batches)


def test_lack_of_memory_stays_what_it_is() -> None:
    assert isinstance(read(run_out_of_memory, workers=1)[1], MemoryError)


@pytest.mark.parametrize(("workers", "training"), [(0, False), (1, True)])
def test_an_unreadable_image_is_the_same_error_from_every_process(workers: int, training: bool, tmp_path: Path) -> None:
    paths = [str(tmp_path / f"{number}.png") for number in range(4)]
    for path in paths:
        Image.new("RGB", (20, 10)).save(path)
    Path(paths[2]).write_bytes(Path(paths[2]).read_bytes()[:50])
    if training:
        dataset, rows = TrainingImages(paths, [0] * 4, training_transform(8)), [(number, 0) for number in range(4)]
    else:
        dataset, rows = EvaluationImages(paths, evaluation_transform(8)), list(range(4))
    loader = DataLoader(dataset, batch_sampler=[rows[:2], rows[2:]], **loader_options(workers))
    batches = iterate_batches(loader)
    assert len(next(batches)[0])
    with pytest.raises(InputError) as caught:
        next(batches)
    assert (caught.value.path, bool(caught.value.hint)) == (paths[2], True)


def test_persistent_workers_serve_several_epochs() -> None:
    loader = DataLoader(torch.arange(6), batch_size=3, **loader_options(1, persistent_workers=True))
    for _ in range(2):
        assert [batch.tolist() for batch in iterate_batches(loader)] == [[0, 1, 2], [3, 4, 5]]


def test_the_timeout_is_a_number_of_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("soon", "-1", "nan", "inf"):
        monkeypatch.setenv(TIMEOUT_VARIABLE, value)
        assert error_of(loader_options, 1).field == TIMEOUT_VARIABLE


def test_a_list_of_paths_is_a_sequence() -> None:
    paths = ["a.png", "", os.fsdecode(b"\xff/\xc3\xbc.jpg"), "c"]
    kept = PathList(paths)
    assert (list(kept), kept[-2], len(kept)) == (paths, paths[2], 4)
    with pytest.raises(IndexError):
        kept[4]
    assert list(PathList([])) == []
