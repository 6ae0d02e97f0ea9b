"""Disks that run full while something is written, and folders that are read-only."""

import ctypes
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from errors import message
from fault_injection import kill_at
from small_runs import STEPS_PER_EPOCH, Run, contents, difference

from orthoproxy.catalog.catalog import Catalog
from orthoproxy.cli.main import main

PAGE = 4096  # in which a tmpfs gives space


def mount(*arguments: object) -> bool:
    try:
        return subprocess.run(["mount", *map(str, arguments)], capture_output=True).returncode == 0
    except OSError:
        return False


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "disk").mkdir()
    if not mount("-t", "tmpfs", "-o", "size=64m", "tmpfs", tmp_path / "disk"):
        pytest.skip("this user may not mount a file system")
    yield tmp_path / "disk"
    subprocess.run(["umount", "--lazy", tmp_path / "disk"], check=True)  # tensors may still be mapped into memory


@contextmanager
def full(folder: Path, free_pages: int = 0) -> Iterator[None]:
    ballast = folder / "ballast"
    ballast.write_bytes(bytes(shutil.disk_usage(folder).free - free_pages * PAGE))
    yield
    ballast.unlink()


@pytest.fixture(scope="module")
def _interrupted(recipe: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = Run(recipe, photos, tmp_path_factory.mktemp("interrupted"))
    run.start(partial(kill_at, f"step:{STEPS_PER_EPOCH + 1}")).end()
    return run.out


@pytest.fixture
def interrupted(_interrupted: Path, recipe: Path, photos: Path, small_disk: Path) -> Run:
    """A run that ended after its first epoch."""
    run = Run(recipe, photos, small_disk)
    shutil.copytree(_interrupted, run.out)
    return run


@pytest.mark.parametrize("free_pages", [0, 300])  # before anything is written, or in the middle of a checkpoint
def test_a_disk_full_while_training(free_pages: int, interrupted: Run, whole: Path, small_disk: Path, capsys) -> None:
    checkpoints = interrupted.out / "checkpoints"
    before = contents(checkpoints)
    with full(small_disk, free_pages):
        assert main(interrupted.words("--resume")) == 2
        after = contents(checkpoints)
    assert {name: after[name] for name in before} == before and after.keys() <= {*before, "previous.ckpt"}
    error = message(capsys.readouterr().err)
    assert str(interrupted.out) in error and "no space left on device" in error and "--resume" in error
    assert interrupted.resumes_to(whole)


@pytest.mark.slow
def test_a_disk_full_while_a_report_is_written(whole: Path, small_disk: Path, capsys) -> None:
    out = Path(shutil.copytree(whole, small_disk / "run", ignore=shutil.ignore_patterns("checkpoints")))
    before = contents(out)
    with full(small_disk, free_pages=4):  # the scores fit
        assert main(["report", str(out)]) == 2
        after = contents(out)
    for content in (before, after):
        content.pop("evaluation.json")  # another number of seconds
    assert after == before and not difference(out, whole)
    assert "no space left on device" in message(capsys.readouterr().err)
    assert main(["report", str(out)]) == 0


def test_a_disk_full_while_images_are_embedded(whole: Path, photos, small_disk: Path, tmp_path: Path, capsys) -> None:
    def embed(out: Path) -> int:
        return main(["embed", str(whole), str(photos), "--out", str(out), "--part-size", "5", "--workers", "0"])

    def parts(out: Path) -> dict[str, bytes]:
        return {name: content for name, content in contents(out).items() if name.startswith("part-")}

    assert embed(tmp_path / "good") == 0
    good = parts(tmp_path / "good")
    with full(small_disk, free_pages=8):
        assert embed(small_disk / "out") == 2
        there = parts(small_disk / "out")
    assert "no space left on device" in message(capsys.readouterr().err)
    assert 0 < len(there) < len(good) and there.items() <= good.items()
    assert embed(small_disk / "out") == 0 and parts(small_disk / "out") == good
    assert not list((small_disk / "out").rglob("*.tmp"))


@pytest.mark.parametrize("free_pages", [1, 64])  # before the catalog is created, or while rows are inserted
def test_a_disk_full_while_a_catalog_is_written(free_pages: int, whole: Path, photos, small_disk, capfd) -> None:
    index = ["index", str(small_disk / "catalog"), str(photos), "--model", str(whole), "--workers", "0"]
    index += ["--batch-size", "1"]
    with full(small_disk, free_pages):
        capfd.readouterr()
        assert main(index) == 2
        printed = capfd.readouterr()
        told = [int(done) for done in re.findall("indexed ([0-9]+)/50", printed.out)]
        assert bool(told) == (free_pages > 1)
        if told:
            with Catalog.open(index[1]) as catalog:
                assert sum(map(len, catalog.iterate_rows(["embedding"]))) >= told[-1]
    [error] = printed.err.splitlines()  # nothing of LanceDB's before it
    assert error.startswith(f"orthoproxy: {small_disk / 'catalog'}: no space left on device. Hint: free some space")
    assert main(index) == 0
    with Catalog.open(index[1]) as catalog:
        assert len(catalog) == 50


@pytest.mark.parametrize("size", ["4k", "24k", "48k"])  # too small for what workers share, for queues, for batches
def test_too_little_shared_memory(size: str, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORTHOPROXY_READ_SECONDS", "20")

    def shrink() -> None:
        if ctypes.CDLL(None).unshare(0x20000):  # CLONE_NEWNS
            os._exit(77)
        made = mount("--make-rprivate", "/") and mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", "/dev/shm")
        if not made:
            os._exit(77)

    code, error = run.start(shrink, "--data.workers", 2).end()
    if code == 77:
        pytest.skip("this user may not mount a file system")
    assert code == 1 and "--shm-size" in message(error) and "workers" in message(error)
    assert message(error).count("\n") == 0


def test_a_read_only_disk(interrupted: Run, whole: Path, small_disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(interrupted.out)
    assert mount("-o", "remount,ro", small_disk)
    try:
        for words in (interrupted.words("--resume"), interrupted.words("--out", small_disk / "new")):
            assert main(words) == 2
            error = message(capsys.readouterr().err)
            assert str(small_disk) in error and "read-only file system" in error
        assert contents(interrupted.out) == before
    finally:
        assert mount("-o", "remount,rw", small_disk)
    assert interrupted.resumes_to(whole)
