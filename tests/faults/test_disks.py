"""Disks that really run full while something is written, and folders that nobody may write to."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from records import record
from small_runs import STEPS_AN_EPOCH, Started, difference, disk, lines_of, mount, training

from orthoproxy.cli.main import main
from orthoproxy.core.errors import InputError
from orthoproxy.data import cache
from orthoproxy.data.cache import cached_images
from orthoproxy.runs.run_folder import Run

PAGE = 4096  # of which a tmpfs gives space


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with disk(tmp_path / "disk", "64m") as mounted:
        if not mounted:
            pytest.skip("this user may not mount a file system")
        yield tmp_path / "disk"


@contextmanager
def full(folder: Path, but: int = 0) -> Iterator[None]:
    """Somebody else fills the disk, but for some pages."""
    ballast = folder / "ballast"
    ballast.write_bytes(bytes(shutil.disk_usage(folder).free - but * PAGE))
    yield
    ballast.unlink()


def contents(folder: Path) -> dict[str, bytes]:
    found = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.name not in ("ballast", ".lock")}
    return {name: path.read_bytes() for name, path in found.items() if path.is_file()}


@pytest.fixture(scope="module")
def _stopped(recipe: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped after its first epoch."""
    out = tmp_path_factory.mktemp("stopped") / "run"

    def at_step(run: Run) -> None:
        raise MemoryError

    Started(training(recipe, photos, out), out.with_name("errors"), STEPS_AN_EPOCH + 1, at_step).end()
    return out


@pytest.fixture
def stopped(_stopped: Path, small_disk: Path) -> Path:
    return Path(shutil.copytree(_stopped, small_disk / "run"))


# before anything is written, or in the midst of a checkpoint
@pytest.mark.parametrize("pages", [0, 300])
def test_a_disk_that_is_full_while_training(
    pages: int,
    stopped: Path,
    recipe: Path,
    photos: Path,
    whole: Path,
    small_disk: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = contents(stopped / "checkpoints")
    with full(small_disk, pages):
        code, lines = main(training(recipe, photos, stopped, "--resume")), lines_of(capsys.readouterr().err)
        after, step = contents(stopped / "checkpoints"), Run(stopped).records()["step"].max()
    again = main(training(recipe, photos, stopped, "--resume"))
    lost = difference(stopped, whole)
    record("faults", "disk full while a checkpoint is written" if pages else "disk full when a run goes on", lost)
    assert code == 2 and len(lines) == 1 and lines[0].startswith(f"orthoproxy: {stopped}")
    assert lines[0].endswith(": no space left on device; free some space and go on with --resume")
    assert step == (2 * STEPS_AN_EPOCH if pages else STEPS_AN_EPOCH + 1)
    assert {name: after[name] for name in before} == before and after.keys() <= {*before, "previous.ckpt"}
    assert (again, lost) == (0, "nothing")


def test_a_disk_that_is_full_while_a_report_is_written(
    whole: Path, small_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = Path(shutil.copytree(whole, small_disk / "run", ignore=shutil.ignore_patterns("checkpoints")))
    before = contents(out)
    with full(small_disk, 4):  # the scores fit
        code, lines = main(["report", str(out)]), lines_of(capsys.readouterr().err)
        after = contents(out)
    for now in (before, after):
        now.pop("evaluation.json")  # another number of seconds
    lost = "nothing" if after == before and difference(out, whole) == "nothing" else "a report"
    record("faults", "disk full while a report is written", lost)
    assert code == 2 and len(lines) == 1
    assert lines[0].endswith("no space left on device; free some space and run it again")
    assert lost == "nothing" and main(["report", str(out)]) == 0


def test_a_disk_that_is_full_while_images_are_embedded(
    whole: Path, photos: Path, small_disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def embed(out: Path) -> int:
        return main(["embed", str(whole), str(photos), "--out", str(out), "--part-size", "5", "--workers", "0"])

    assert embed(tmp_path / "good") == 0
    good = {name: content for name, content in contents(tmp_path / "good").items() if name.startswith("part-")}
    capsys.readouterr()
    with full(small_disk, 8):
        code, lines = embed(small_disk / "out"), lines_of(capsys.readouterr().err)
        left = contents(small_disk / "out")
    parts = {name: content for name, content in left.items() if name.startswith("part-")}
    again = embed(small_disk / "out")
    found = contents(small_disk / "out")
    sound = parts.items() <= good.items() and all(found[name] == good[name] for name in good)
    record("faults", "disk full while images are embedded", "nothing" if sound else "a part")
    assert code == 2 and lines[0].endswith("no space left on device; free some space and run it again")
    assert 0 < len(parts) < len(good) and not [name for name in left if name.endswith(".tmp")]
    assert again == 0 and sound


def test_a_disk_that_is_full_while_a_cache_is_filled(
    photos: Path, small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths, size = sorted(photos.rglob("*.png")), 32
    folder, require = small_disk / "cache", cache._require_space
    good = [picture.pixels for picture in cached_images(paths, tmp_path / "good", size)]
    cached_images(paths[:20], folder, size)
    before = contents(folder)
    filling = full(small_disk, 5)

    def require_and_fill(*arguments: object) -> None:
        require(*arguments)  # pyright: ignore[reportArgumentType]
        filling.__enter__()

    with monkeypatch.context() as patched:
        patched.setattr(cache, "_require_space", require_and_fill)
        with pytest.raises(InputError, match="No space left on device; free some space, or give another folder"):
            cached_images(paths, folder, size)
    after = contents(folder)
    kept = [picture.pixels for picture in cached_images(paths[:20], folder, size)]
    filling.__exit__(None, None, None)
    again = [picture.pixels for picture in cached_images(paths, folder, size)]
    sound = all(np.array_equal(x, y) for x, y in zip([*kept, *again], [*good[:20], *good], strict=True))
    record("faults", "disk full while a cache is filled", "nothing" if sound else "an image")
    assert sound and all(len(after[name]) >= len(before[name]) for name in before)
    assert not [name for name in after if name.endswith(".tmp")]


def test_a_folder_on_a_read_only_disk(
    stopped: Path,
    recipe: Path,
    photos: Path,
    whole: Path,
    small_disk: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = contents(stopped)
    assert mount("-o", "remount,ro", small_disk)
    refused = []
    try:
        for out, more in [(stopped, ["--resume"]), (small_disk / "new", [])]:
            capsys.readouterr()
            refused.append((main(training(recipe, photos, out, *more)), lines_of(capsys.readouterr().err)))
        after = contents(stopped)
    finally:
        assert mount("-o", "remount,rw", small_disk)
    again = main(training(recipe, photos, stopped, "--resume"))
    lost = difference(stopped, whole)
    record("faults", "a read-only run folder", lost)
    for code, lines in refused:
        assert code == 2 and len(lines) == 1 and str(small_disk) in lines[0]
        assert lines[0].endswith("read-only file system; change its permissions, or give another path")
    assert after == before and (again, lost) == (0, "nothing")
