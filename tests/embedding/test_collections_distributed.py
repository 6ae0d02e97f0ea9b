"""Embedding by several processes: the files of one, one that prints, errors that end all, and a killed job finished."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from fault_injection import kill_at
from many import in_processes

from orthoproxy.cli.main import main
from orthoproxy.core.distributed import RemoteProcessError, process_index
from orthoproxy.core.errors import InputError
from orthoproxy.data import read_collection
from orthoproxy.data.sources.collection import Collection
from orthoproxy.embedding.collections import embed_collection
from orthoproxy.embedding.embedder import Embedder
from orthoproxy.models import Encoder


def tiny() -> Embedder:
    torch.manual_seed(0)
    return Embedder(Encoder("deit_tiny_patch16_224", embedding_dim=8, image_size=32), resize=32)


def embed(images: Path, out: Path, without_last_in: int | None = None, moments: Sequence[str] = ()) -> tuple[str, int]:
    """Embed the twelve images, three a part; return what this process reports, or the kind of the error it meets."""
    collection = read_collection(images)
    if process_index() == without_last_in:
        collection = Collection(collection.root, collection.images[:-1])
    if moments:
        kill_at(moments[process_index()])
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


def test_the_command_embeds_in_several_processes_and_one_prints(photos, tmp_path, one, capfd) -> None:
    model, out = tmp_path / "model", tmp_path / "out"
    tiny().save(model)
    words = ["embed", model, photos, "--out", out, "--part-size", 3, "--batch-size", 2, "--workers", 0]
    assert in_processes(2, main, [str(word) for word in words]) == [0, 0]
    assert capfd.readouterr().out.count("11 images embedded, 12 of them now") == 1
    assert files(out) | {"_embedding.json": one["_embedding.json"]} == one  # it says where the model is


@pytest.mark.parametrize(("moments", "after", "left"), [
    (["part-00001.parquet half:1"], 3, 9),
    (["part-00002.parquet half:1", "part-00003.parquet unflushed:1"], 1, 6),
])  # fmt: skip
def test_another_number_of_processes_finishes_a_killed_job(photos, tmp_path, one, moments, after, left) -> None:
    out, count = tmp_path / "out", len(moments)
    in_processes(count, embed, photos, out, None, moments, killed=tuple(range(count)))
    kept = {path: path.stat().st_mtime_ns for path in out.glob("part-*")}
    assert in_processes(after, embed, photos, out) == [("11 images, 1 unreadable", left)] * after
    assert files(out) == one
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_an_error_in_one_process_ends_all(photos, tmp_path) -> None:
    (tmp_path / "file").touch()
    ended = in_processes(2, embed, photos, tmp_path / "file")
    assert [kind for kind, _ in ended] == [InputError.__name__, RemoteProcessError.__name__]
    ended = in_processes(2, embed, photos, tmp_path / "out", 1)
    assert [kind for kind, _ in ended] == [RemoteProcessError.__name__, InputError.__name__]
    assert not list((tmp_path / "out").glob("part-*"))
