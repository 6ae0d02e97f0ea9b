"""Files are there whole or not at all, and a folder has one holder."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import pytest
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


def _write_after_kill_at(stage: str, path: Path) -> None:
    kill_at(f"{path.name} {stage}:1")
    atomic_write(path, b"after" * LONG)


@pytest.mark.parametrize("stage", ["half", "unflushed", "flushed", "renamed"])
def test_killed_while_a_file_is_written(tmp_path: Path, stage: str) -> None:
    path = tmp_path / "a.txt"
    path.write_text("before")
    (tmp_path / ".b.tmp").touch()  # of somebody else
    process = fork(_write_after_kill_at, stage, path)
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


# ---- locks


def assert_in_use(folder: Path) -> None:
    with pytest.raises(InputError) as caught, folder_lock(folder, "out"):
        pass
    assert caught.value.field == "out" and caught.value.path == folder
    assert f"process {os.getpid()} on " in caught.value.problem


def test_a_lock_excludes_its_own_process_and_thread(tmp_path: Path) -> None:
    folder, errors = tmp_path / "folder", []

    def try_in_thread() -> None:
        try:
            assert_in_use(folder)
        except BaseException as error:
            errors.append(error)

    with folder_lock(folder):
        assert_in_use(folder)
        thread = threading.Thread(target=try_in_thread)
        thread.start()
        thread.join()
        assert not errors and (folder / ".lock").exists()
    assert not folder.exists()
    with folder_lock(folder):
        (folder / "model").touch()
    assert [path.name for path in folder.iterdir()] == ["model"]


def _take_in_turn(folder: Path, counter: Path, times: int) -> None:
    while times:
        try:
            with folder_lock(folder):
                counter.write_text(str(int(counter.read_text()) + 1))
                times -= 1
        except InputError:
            time.sleep(0.0001)


def test_a_lock_taken_and_removed_often_has_one_holder_at_a_time(tmp_path: Path) -> None:
    (tmp_path / "counter").write_text("0")
    processes = [fork(_take_in_turn, tmp_path / "folder", tmp_path / "counter", 200) for _ in range(3)]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert (tmp_path / "counter").read_text() == "600" and not (tmp_path / "folder").exists()


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
