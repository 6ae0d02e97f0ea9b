"""Files are there whole or not at all, and a folder has one holder."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import pytest
from errors import error_of
from fault_injection import kill_at

from orthoproxy.core.errors import InputError
from orthoproxy.core.files import atomic_write
from orthoproxy.core.folder_lock import folder_lock

LONG = 200_000


def fork(function: Callable, *args: object) -> multiprocessing.Process:
    process = multiprocessing.get_context("fork").Process(target=function, args=args)
    process.start()
    return process


def test_two_writers_of_one_file(tmp_path: Path) -> None:
    path, link = tmp_path / "scores.json", tmp_path / "link"

    def meanwhile(file: BinaryIO) -> None:
        file.write(b"first")
        atomic_write(path, "second")
        assert path.read_text() == "second"

    atomic_write(path, meanwhile)
    assert path.read_text() == "first" and list(tmp_path.iterdir()) == [path]
    link.symlink_to(path)
    atomic_write(link, "after")
    assert link.is_symlink() and path.read_text() == "after"


@pytest.mark.parametrize("stage", ["half", "unflushed", "flushed", "renamed"])
def test_killed_while_a_file_is_written(tmp_path: Path, stage: str) -> None:
    path = tmp_path / "a.txt"
    path.write_text("before")
    (tmp_path / ".b.tmp").touch()  # of somebody else
    process = fork(lambda: (kill_at(f"{path.name} {stage}:1"), atomic_write(path, b"after" * LONG)))
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert path.read_text() == ("after" * LONG if stage == "renamed" else "before")
    sizes = [left.stat().st_size for left in tmp_path.glob(".a.txt.*.tmp")]
    assert sizes == {"half": [5 * LONG // 2], "renamed": []}.get(stage, [5 * LONG])
    with folder_lock(tmp_path):  # of the next job
        assert {left.name for left in tmp_path.iterdir()} == {"a.txt", ".b.tmp", ".lock"}


def test_a_pipe_is_written_to(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=atomic_write, args=(tmp_path / "pipe", "scores"))
    writer.start()
    assert (tmp_path / "pipe").read_text() == "scores"
    writer.join()


def test_a_lock_excludes_other_threads_of_its_own_process(tmp_path: Path) -> None:
    with folder_lock(tmp_path / "folder"), ThreadPoolExecutor(1) as pool:
        error = pool.submit(error_of, folder_lock(tmp_path / "folder", "out").__enter__).result()
        (tmp_path / "folder" / "model").touch()
    assert (error.field, error.path) == ("out", tmp_path / "folder")
    assert f"process {os.getpid()} on " in error.problem
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["model"]


def test_a_lock_taken_and_removed_often_has_one_holder_at_a_time(tmp_path: Path) -> None:
    (counter := tmp_path / "counter").write_text("0")

    def take_in_turn(times: int) -> None:
        while times:
            with suppress(InputError), folder_lock(tmp_path / "folder"):
                counter.write_text(str(int(counter.read_text()) + 1))
                times -= 1
            time.sleep(0.0001)

    processes = [fork(take_in_turn, 200) for _ in range(3)]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert counter.read_text() == "600" and not (tmp_path / "folder").exists()


def test_a_forked_worker_does_not_keep_the_lock_of_a_killed_process(tmp_path: Path) -> None:
    read, write = os.pipe()

    def hold() -> None:
        with folder_lock(tmp_path / "folder"):
            worker = fork(time.sleep, 3600)
            os.write(write, str(worker.pid).encode())
            time.sleep(3600)

    holder = fork(hold)
    worker = int(os.read(read, 100))
    holder.kill()
    holder.join()
    try:
        os.kill(worker, 0)  # lives
        with folder_lock(tmp_path / "folder"):
            pass
    finally:
        os.kill(worker, signal.SIGKILL)
