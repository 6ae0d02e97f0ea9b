"""A file is there whole or not at all, and a reader never sees half of it."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import signal
from pathlib import Path
from typing import BinaryIO

import pytest
from records import record

from orthoproxy.core import files
from orthoproxy.core.failpoints import VARIABLE
from orthoproxy.core.files import atomic_write

LONG = 200_000


def _rewrite(path: Path, times: int) -> None:
    for number in range(times):
        atomic_write(path, json.dumps([number] * (LONG // 100)))


def test_a_reader_sees_one_version_or_the_other(tmp_path: Path) -> None:
    path, times = tmp_path / "scores.json", 300
    _rewrite(path, 1)
    writer = multiprocessing.get_context("fork").Process(target=_rewrite, args=(path, times))
    writer.start()
    seen, halves = set(), 0
    while writer.is_alive():
        try:
            (number,) = set(json.loads(path.read_text()))
        except ValueError:
            halves += 1
        else:
            seen.add(number)
    writer.join()
    record("faults", "a file read while it is written", f"{halves} reads" if halves else "nothing", times=times)
    assert not halves and len(seen) > 3


def test_two_writers_of_one_file_do_not_get_into_each_others_way(tmp_path: Path) -> None:
    path = tmp_path / "part"

    def meanwhile(file: BinaryIO) -> None:
        file.write(b"first")
        atomic_write(path, "second")
        assert path.read_text() == "second"

    atomic_write(path, meanwhile)
    assert path.read_text() == "first" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("place", ["half", "unflushed", "flushed"])
@pytest.mark.parametrize("content", ["after" * LONG, lambda file: file.write(b"after" * LONG)])
def test_killed_before_the_renaming_the_file_is_as_before(tmp_path: Path, place: str, content: object) -> None:
    path = tmp_path / "a.txt"
    path.write_text("before")

    def work() -> None:
        os.environ[VARIABLE] = f"a.txt {place}:1"
        atomic_write(path, content)  # pyright: ignore[reportArgumentType]

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join()
    size = (tmp_path / "a.txt.tmp").stat().st_size
    assert process.exitcode == -signal.SIGKILL and path.read_text() == "before"
    assert size == 5 * LONG // 2 if place == "half" else size <= 5 * LONG
    atomic_write(path, "again")
    assert path.read_text() == "again" and list(tmp_path.iterdir()) == [path]


def test_a_disk_that_is_full_when_it_is_flushed_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: BinaryIO) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "a.txt"
    atomic_write(path, "before")
    monkeypatch.setattr(files, "flush", full)
    with pytest.raises(OSError, match="No space left"):
        atomic_write(path, "after")
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    link, path = tmp_path / "link", tmp_path / "a.txt"
    path.write_text("before")
    link.symlink_to(path)
    atomic_write(link, "after")
    assert link.is_symlink() and path.read_text() == "after"
