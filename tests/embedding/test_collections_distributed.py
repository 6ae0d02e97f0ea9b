"""Embedding by several processes: the files of one, one that prints, errors that end all, and a killed job finished."""

import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from many import children, in_processes, torchrun

from orthoproxy.core.distributed import RemoteProcessError, process_index
from orthoproxy.core.errors import InputError
from orthoproxy.data import read_collection
from orthoproxy.data.sources.collection import Collection
from orthoproxy.embedding.collections import embed_collection
from orthoproxy.embedding.embedder import Embedder
from orthoproxy.embedding.parquet_store import read_parts
from orthoproxy.models import Encoder


def tiny() -> Embedder:
    torch.manual_seed(0)
    return Embedder(Encoder("deit_tiny_patch16_224", embedding_dim=8, image_size=32), resize=32)


def embed(images: Path, out: Path, without_last_in: int | None = None) -> tuple[str, int]:
    """Embed the twelve images, three a part; return what this process reports, or the kind of the error it meets."""
    collection = read_collection(images)
    if process_index() == without_last_in:
        collection = Collection(collection.root, collection.images[:-1])
    try:
        done = embed_collection(tiny(), "runs/x", collection, out, batch_size=2, part_size=3)
    except (InputError, RemoteProcessError) as error:
        return type(error).__name__, 0
    return f"{done.images} images, {len(done.unreadable)} unreadable", done.new_images


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}


@pytest.fixture(scope="module")
def photos(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The twelve images, one of them damaged."""
    folder = tmp_path_factory.mktemp("photos") / "images"
    shutil.copytree(image_folder, folder)
    (folder / "green" / "2.png").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def one(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("one") / "out"
    assert in_processes(1, embed, photos, out) == [("11 images, 1 unreadable", 12)]
    return files(out)


@pytest.mark.parametrize("count", [2, 5])  # 5: more than there are parts
def test_any_number_of_processes_writes_the_same_files(photos, tmp_path, one, count, capfd) -> None:
    reports = in_processes(count, embed, photos, tmp_path / "out")
    assert reports == [("11 images, 1 unreadable", 12)] * count
    assert files(tmp_path / "out") == one
    assert len(one) == 6  # four parts, their list, the unreadable image
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize(("before", "after"), [(1, 3), (3, 2)])
def test_another_number_of_processes_finishes_what_is_missing(photos, tmp_path, one, before, after) -> None:
    in_processes(before, embed, photos, tmp_path / "out")
    for name in ("part-00000.parquet", "part-00002.parquet", "_unreadable.csv"):
        (tmp_path / "out" / name).unlink()
    kept = (tmp_path / "out" / "part-00003.parquet").stat().st_mtime_ns
    assert in_processes(after, embed, photos, tmp_path / "out") == [("11 images, 1 unreadable", 6)] * after
    assert files(tmp_path / "out") == one
    assert (tmp_path / "out" / "part-00003.parquet").stat().st_mtime_ns == kept


def test_an_error_in_one_process_ends_all(photos, tmp_path) -> None:
    (tmp_path / "file").touch()
    ended = in_processes(2, embed, photos, tmp_path / "file")
    assert [kind for kind, _ in ended] == [InputError.__name__, RemoteProcessError.__name__]
    ended = in_processes(2, embed, photos, tmp_path / "out", 1)
    assert [kind for kind, _ in ended] == [RemoteProcessError.__name__, InputError.__name__]
    assert not list((tmp_path / "out").glob("part-*"))


def start(processes: int, model: Path, images: Path, out: Path) -> subprocess.Popen[str]:
    options = ["--part-size", "2", "--batch-size", "2", "--workers", "1", "--out", out]
    return torchrun(processes, "-m", "orthoproxy", "embed", model, images, *options)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks for processes in /proc")
def test_a_killed_job_is_finished_by_another_number_of_processes(photos, tmp_path) -> None:
    """With torchrun: all of its processes are killed, then others finish the work."""
    many, model, out = tmp_path / "many", tmp_path / "model", tmp_path / "out"
    for copy in range(20):
        shutil.copytree(photos, many / f"{copy}")
    tiny().save(model)
    job = start(2, model, many, out)
    while len(list(out.glob("part-*"))) < 5:
        assert job.poll() is None, job.communicate()[0]
        time.sleep(0.01)
    for process in (job.pid, *children(job.pid)):
        os.kill(process, signal.SIGKILL)
    job.communicate()  # returns when all have ended
    kept = {path.name: path.read_bytes() for path in out.glob("part-*")}
    assert len(kept) < 120
    job = start(3, model, many, out)
    printed = job.communicate(timeout=500)[0]
    assert job.returncode == 0, printed
    assert kept.items() <= files(out).items()
    assert sum(len(rows) for rows, _ in read_parts(out)) == 220
    made = re.search(r"220 images embedded, (\d+) of them now", printed)
    assert made is not None and int(made[1]) == 240 - 2 * len(kept)
