"""Embeddings as Parquet parts: what they hold, and how a stopped job goes on, in one process and in several."""

import hashlib
import shutil
import sys
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from errors import error_of
from fault_injection import kill_at
from many import in_processes
from small_runs import contents

from orthoproxy.core.distributed import RemoteProcessError, process_index
from orthoproxy.core.errors import InputError
from orthoproxy.core.folder_lock import folder_lock
from orthoproxy.data import read_collection
from orthoproxy.data.sources.collection import Collection
from orthoproxy.embedding.collections import EmbedResult, embed_collection
from orthoproxy.embedding.embedder import Embedder
from orthoproxy.embedding.parquet_store import TEXT_COLUMNS, embedding_meta, read_parts
from orthoproxy.models import Encoder


@pytest.fixture
def embedder(tiny_encoder: Encoder) -> Embedder:
    return Embedder(tiny_encoder, resize=32)


@pytest.fixture
def run(embedder: Embedder, image_folder: Path, tmp_path: Path) -> Callable[..., EmbedResult]:
    """Embed the twelve images, four a batch and five a part."""

    def embed_images(**options: Any) -> EmbedResult:
        given = {"embedder": embedder, "model_path": "runs/x", "collection": read_collection(image_folder)}
        given |= {"out": tmp_path / "out", "batch_size": 4, "part_size": 5}
        return embed_collection(**{**given, **options})

    return embed_images


def everything(folder: Path) -> tuple[pd.DataFrame, np.ndarray]:
    rows, embeddings = zip(*read_parts(folder), strict=True)
    return pd.concat(rows, ignore_index=True), np.concatenate(embeddings)


def test_parts_hold_each_image_with_its_embedding_label_and_content(run, embedder, image_folder, tmp_path) -> None:
    done = run()
    rows, embeddings = everything(tmp_path / "out")
    names = [f"{color}/{number}.png" for color in ("blue", "green", "red") for number in range(4)]
    assert rows["path"].tolist() == names
    assert rows["label"].tolist() == [name.partition("/")[0] for name in names]
    assert set(rows["group"]) == {""}
    digests = [hashlib.sha256((image_folder / name).read_bytes()).hexdigest()[:32] for name in names]
    assert rows["content"].tolist() == digests
    paths = [image_folder / name for name in names]
    alone = [embedder.embed(paths[first : first + 5], batch_size=4) for first in (0, 5, 10)]
    assert embeddings.dtype == np.float32 and np.array_equal(embeddings, np.concatenate(alone))
    assert (done.images, done.new_images, len(done.unreadable)) == (12, 12, 0)
    meta = embedding_meta(tmp_path / "out")
    assert (meta.model, meta.model_path, meta.dim) == (embedder.identity, "runs/x", 8)
    assert (meta.root, meta.images, [part.images for part in meta.parts]) == (str(image_folder), 12, [5, 5, 2])
    plain = pd.read_parquet(tmp_path / "out")
    assert {*plain.columns} == {*TEXT_COLUMNS, "embedding"}
    assert np.array_equal(np.stack(plain["embedding"].tolist()), embeddings)


def test_what_is_finished_is_kept_and_what_is_not_is_made_again_to_the_same_bits(run, tmp_path) -> None:
    run()
    before = contents(tmp_path / "out")
    times = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("part-*")}
    (tmp_path / "out" / "part-00000.parquet").unlink()
    cut = tmp_path / "out" / "part-00002.parquet"
    cut.write_bytes(cut.read_bytes()[:-100])
    (tmp_path / "out" / f".part-00000.parquet.{'0' * 32}.tmp").write_bytes(b"PAR1")
    assert "part-00000.parquet" in str(error_of(read_parts, tmp_path / "out"))
    done = run()
    assert (done.images, done.new_images) == (12, 7)
    assert contents(tmp_path / "out") == before
    assert (tmp_path / "out" / "part-00001.parquet").stat().st_mtime_ns == times["part-00001.parquet"]
    assert not list((tmp_path / "out").glob(".*.tmp"))
    assert run().new_images == 0
    (tmp_path / "out" / "part-00000.parquet").write_bytes(before["part-00001.parquet"])
    assert run().new_images == 5
    assert contents(tmp_path / "out") == before


def test_another_job_than_the_one_begun(run, tiny_encoder, image_folder, tmp_path) -> None:
    for name, value in (("batch_size", 0), ("part_size", 0), ("workers", -1)):
        assert error_of(run, **{name: value}).field == name
    run()
    before = contents(tmp_path / "out")
    other = Embedder(Encoder("deit_tiny_patch16_224", embedding_dim=8, image_size=32), resize=32)
    assert error_of(run, embedder=other).field == "out"
    assert error_of(run, embedder=Embedder(tiny_encoder, resize="stretch")).field == "out"
    assert error_of(run, part_size=6).field == "part_size"
    collection = read_collection(image_folder)
    assert error_of(run, collection=Collection(collection.root, collection.images[:-1])).field == "out"
    assert error_of(run, collection=Collection(collection.root, collection.images.assign(label="x"))).field == "out"
    assert error_of(run, collection=Collection(tmp_path, collection.images)).field == "out"
    assert contents(tmp_path / "out") == before


def test_a_folder_of_something_else_or_of_another_job(run, tmp_path) -> None:
    (tmp_path / "file").touch()
    assert error_of(run, out=tmp_path / "file").field == "out"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "part-0.parquet").touch()
    assert error_of(run, out=tmp_path / "other").field == "out"
    for text, field in (('{"format_version": 99}', "format_version"), ("{", None)):
        (tmp_path / "other" / "_embedding.json").write_text(text)
        assert error_of(run, out=tmp_path / "other").field == field
    with folder_lock(tmp_path / "out"):
        assert error_of(run).field == "out"


@pytest.mark.parametrize("error", [MemoryError(), OSError(5, "Input/output error")])
def test_a_failure_to_read_is_not_damage(run, tmp_path, monkeypatch, error) -> None:
    """Neither lack of memory nor a failing disk may lead to a good part being deleted or embedded again."""
    run()
    before, parts = contents(tmp_path / "out"), read_parts(tmp_path / "out")

    def fail(*_: Any, **__: Any) -> None:
        raise error

    for name, read in (("ParquetFile", lambda: next(parts)), ("read_metadata", run)):
        with monkeypatch.context() as patched:
            patched.setattr(pq, name, fail)
            with pytest.raises(type(error)) as raised:
                read()
            assert not isinstance(raised.value, InputError)
    assert contents(tmp_path / "out") == before


@pytest.fixture
def damaged(image_folder: Path, tmp_path: Path) -> Path:
    """Seven images in two classes and one loose, of which three cannot be read."""
    root = tmp_path / "damaged"
    (root / "a" / "deep" / "er").mkdir(parents=True)
    (root / "b").mkdir()
    whole = (image_folder / "red" / "0.png").read_bytes()
    for name in ("a/1.png", "a/deep/er/2.png", "b/4.png", "loose.png"):
        (root / name).write_bytes(whole)
    (root / "a" / "0.png").write_bytes(b"")
    (root / "b" / "3.jpg").write_bytes(b"no image")
    (root / "b" / "5.png").write_bytes(whole[: len(whole) // 2])
    return root


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_images_are_listed_and_the_others_embedded(run, embedder, damaged, tmp_path, workers) -> None:
    done = run(collection=read_collection(damaged), part_size=3, workers=workers)
    rows, embeddings = everything(tmp_path / "out")
    assert dict(zip(rows["path"], rows["label"], strict=True)) == {
        "a/1.png": "a", "a/deep/er/2.png": "a", "b/4.png": "b", "loose.png": "",
    }  # fmt: skip
    one = embedder.embed([damaged / "loose.png"])
    np.testing.assert_allclose(embeddings, np.repeat(one, 4, axis=0), atol=1e-5)
    assert (done.images, done.new_images) == (4, 7)
    listed = pd.read_csv(tmp_path / "out" / "_unreadable.csv")
    assert listed.to_dict("list") == done.unreadable.to_dict("list")
    assert [Path(path).relative_to(damaged).as_posix() for path in listed["path"]] == ["a/0.png", "b/3.jpg", "b/5.png"]
    assert listed["part"].tolist() == ["part-00000.parquet", "part-00001.parquet", "part-00001.parquet"]
    assert listed["reason"][0] == "the file is empty" and listed["reason"].notna().all()
    (damaged / "b" / "4.png").unlink()
    nothing = error_of(run, collection=read_collection(damaged / "b"), out=tmp_path / "nothing")
    assert nothing.path == str(damaged / "b" / "3.jpg")


def test_a_part_without_readable_images_is_a_part_and_a_repaired_one_is_made_on_demand(run, damaged, tmp_path) -> None:
    collection = read_collection(damaged)
    run(collection=collection, part_size=1)
    assert [len(rows) for rows, _ in read_parts(tmp_path / "out")] == [1, 1, 1, 1]
    for name in ("a/0.png", "b/3.jpg", "b/5.png"):
        (damaged / name).write_bytes((damaged / "loose.png").read_bytes())
    assert run(collection=collection, part_size=1).new_images == 0
    for part in pd.read_csv(tmp_path / "out" / "_unreadable.csv")["part"]:
        (tmp_path / "out" / part).unlink()
    done = run(collection=collection, part_size=1)
    assert (done.images, done.new_images) == (7, 3)
    assert not (tmp_path / "out" / "_unreadable.csv").exists()


def test_each_file_is_read_once(run, image_folder) -> None:
    opened, watched = [], {str(path) for path in image_folder.rglob("*.png")}
    sys.addaudithook(lambda _, given: opened.append(given[0]) if given and str(given[0]) in watched else None)
    run()
    assert sorted(map(str, opened)) == sorted(watched)


def test_memory_does_not_grow_with_the_images(run, tmp_path, image_folder) -> None:
    (tmp_path / "many").mkdir()
    for number in range(256):  # 19 MiB of pixels at the encoder's size
        (tmp_path / "many" / f"{number}.png").symlink_to(image_folder / "red" / "0.png")
    large = Embedder(Encoder("test_vit", embedding_dim=8, image_size=160), resize=160)

    def embed_traced() -> int:
        tracemalloc.start()
        run(embedder=large, collection=read_collection(tmp_path / "many"), part_size=16)
        return tracemalloc.get_traced_memory()[1]

    (peak,) = in_processes(1, embed_traced)  # without threads that earlier tests left
    assert peak < 5 * 2**20  # a part has 1.2 MiB


def embed(images: Path, out: Path, without_last_in: int | None = None, moments: Sequence[str] = ()) -> tuple[str, int]:
    """Embed the twelve images, three a part; return what this process reports, or the kind of the error it meets."""
    collection = read_collection(images)
    if process_index() == without_last_in:
        collection = Collection(collection.root, collection.images[:-1])
    if moments:
        kill_at(moments[process_index()])
    torch.manual_seed(0)
    model = Embedder(Encoder("deit_tiny_patch16_224", embedding_dim=8, image_size=32), resize=32)
    try:
        done = embed_collection(model, "runs/x", collection, out, batch_size=2, part_size=3)
    except (InputError, RemoteProcessError) as error:
        return type(error).__name__, 0
    return f"{done.images} images, {len(done.unreadable)} unreadable", done.new_images


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
    return contents(out)


@pytest.mark.parametrize("count", [2, 5])  # 5: more than there are parts
def test_any_number_of_processes_writes_the_same_contents(photos, tmp_path, one, count, capfd) -> None:
    reports = in_processes(count, embed, photos, tmp_path / "out")
    assert reports == [("11 images, 1 unreadable", 12)] * count
    assert contents(tmp_path / "out") == one
    assert len(one) == 6  # four parts, their list, the unreadable image
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize(("moments", "after", "left"), [
    (["part-00001.parquet half:1"], 3, 9),
    (["part-00002.parquet half:1", "part-00003.parquet unflushed:1"], 1, 6),
])  # fmt: skip
def test_another_number_of_processes_finishes_a_killed_job(photos, tmp_path, one, moments, after, left) -> None:
    out, count = tmp_path / "out", len(moments)
    in_processes(count, embed, photos, out, None, moments, killed=tuple(range(count)))
    kept = {path: path.stat().st_mtime_ns for path in out.glob("part-*")}
    assert in_processes(after, embed, photos, out) == [("11 images, 1 unreadable", left)] * after
    assert contents(out) == one
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_an_error_in_one_process_ends_all(photos, tmp_path) -> None:
    (tmp_path / "file").touch()
    ended = in_processes(2, embed, photos, tmp_path / "file")
    assert [kind for kind, _ in ended] == [InputError.__name__, RemoteProcessError.__name__]
    ended = in_processes(2, embed, photos, tmp_path / "out", 1)
    assert [kind for kind, _ in ended] == [RemoteProcessError.__name__, InputError.__name__]
    assert not list((tmp_path / "out").glob("part-*"))
