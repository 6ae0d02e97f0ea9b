"""A catalog follows the images on disk; what was told to be safe is there after a kill."""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command_line import json_of
from errors import error_of, input_error
from PIL import Image
from servers import forwarded

from orthoproxy.catalog import lance
from orthoproxy.catalog.catalog import Catalog, image_id
from orthoproxy.catalog.index import delete_paths, images_to_prune, index_embeddings, index_images, migrate
from orthoproxy.cli.main import main
from orthoproxy.core.errors import InputError
from orthoproxy.data import read_collection
from orthoproxy.embedding.collections import embed_collection
from orthoproxy.embedding.embedder import Embedder
from orthoproxy.embedding.parquet_store import read_parts
from orthoproxy.models import Encoder


@pytest.fixture
def embedder(tiny_encoder: Encoder) -> Embedder:
    return Embedder(tiny_encoder)


@pytest.fixture
def pictures(image_folder: Path, tmp_path: Path) -> Path:
    """A copy of the pictures, to change: blue, green and red, four each."""
    return shutil.copytree(image_folder, tmp_path / "pictures")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "catalog"


def create(place: Path | str, embedder: Embedder, root: Path) -> Catalog:
    return Catalog.create(str(place), embedder.embedding_dim, embedder.identity, "", root)


@pytest.fixture
def catalog(place: Path, embedder: Embedder, pictures: Path) -> Iterator[Catalog]:
    """With all pictures."""
    with create(place, embedder, pictures) as catalog:
        index_images(catalog, read_collection(pictures), embedder)
        yield catalog


@pytest.fixture
def embeddings(embedder: Embedder, pictures: Path, tmp_path: Path) -> Path:
    """Of all pictures, in parts of five."""
    embed_collection(embedder, "runs/x", read_collection(pictures), tmp_path / "embeddings", part_size=5)
    return tmp_path / "embeddings"


def everything(catalog: Catalog) -> pd.DataFrame:
    return pd.concat(catalog.iterate_rows()).sort_values("id", ignore_index=True)


def nearest_others(embeddings: np.ndarray) -> np.ndarray:
    return (embeddings @ embeddings.T - 3 * np.eye(len(embeddings))).argmax(axis=1)


class Counting(Embedder):
    """Counts the images that it embeds."""

    images = 0

    def embed(self, images: Any, *args: Any, **options: Any) -> np.ndarray:
        self.images += len(images)
        return super().embed(images, *args, **options)


def test_images_get_their_embeddings_and_again_only_those_that_changed(address: str, tiny_encoder, pictures) -> None:
    embedder, told = Counting(tiny_encoder), []
    with create(address, embedder, pictures) as catalog:
        collection, report = read_collection(pictures), lambda *step: told.append(step)
        changes = index_images(catalog, collection, embedder, batch_size=2, report=report)
        assert (changes.added, changes.replaced, changes.unchanged, changes.unreadable) == (12, 0, 0, [])
        assert told == [(8, 12), (12, 12)]
        for name, color in (("0", "yellow"), ("new", "purple")):  # changed, new
            Image.new("RGB", (40, 32), color).save(pictures / "red" / f"{name}.png")
        shutil.copy(pictures / "blue" / "0.png", pictures / "red" / "copy.png")  # a copy elsewhere: a row of its own
        (pictures / "blue" / "1.png").unlink()
        embedder.images = 0
        changes = index_images(catalog, read_collection(pictures), embedder)
        assert embedder.images == 3
        assert (changes.added, changes.replaced, changes.unchanged) == (2, 1, 10)
        paths = [f"{color}/{number}.png" for color in ("blue", "green", "red") for number in range(4)]
        paths += ["red/copy.png", "red/new.png"]
        rows = catalog.get([image_id(path) for path in paths], with_embeddings=True)
        assert rows["path"].tolist() == paths and len(catalog) == 14 and catalog.info()["duplicates"] == 1
        assert rows["label"].tolist() == [path.split("/")[0] for path in paths]
        there = rows[rows["path"] != "blue/1.png"]
        files = [pictures / path for path in there["path"]]
        np.testing.assert_allclose(np.stack(there["embedding"].tolist()), embedder.embed(files), atol=1e-5)
        listed = pd.DataFrame({"path": ["red/0.png", "red/1.png"], "label": ["rose", "red"]})
        listed.to_csv(pictures / "list.csv", index=False)
        embedder.images = 0
        relabeled = index_images(catalog, read_collection(pictures / "list.csv"), embedder)
        assert (relabeled.added, relabeled.relabeled, relabeled.unchanged, embedder.images) == (0, 1, 1, 0)
        [after] = catalog.get([image_id("red/0.png")], with_embeddings=True).itertuples()
        assert after.label == "rose"
        np.testing.assert_array_equal(after.embedding, rows["embedding"][paths.index("red/0.png")])
        # what is gone from the disk stays, until it is asked to go
        assert image_id("blue/1.png") in set(everything(catalog)["id"])
        assert images_to_prune(catalog, changes.ids)["path"].tolist() == ["blue/1.png"]
        catalog.delete(images_to_prune(catalog, changes.ids)["id"].tolist())
        assert image_id("blue/1.png") not in set(everything(catalog)["id"])
        assert len(catalog) == 13


def test_a_part_without_labels_keeps_them(catalog: Catalog, embedder: Embedder, pictures: Path) -> None:
    before = everything(catalog)
    Image.new("RGB", (40, 32), "yellow").save(pictures / "red" / "0.png")
    changes = index_images(catalog, read_collection(pictures / "red"), embedder)  # images in no sub-folder
    assert (changes.replaced, changes.relabeled, changes.unchanged) == (1, 0, 3)
    columns = ["id", "path", "label", "group"]
    pd.testing.assert_frame_equal(everything(catalog)[columns], before[columns])


def test_what_may_be_pruned(place: Path, embedder: Embedder, pictures: Path) -> None:
    for number in range(20):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(pictures / "blue" / f"more {number}.png")
    shutil.copytree(pictures / "red", pictures / "white", ignore=shutil.ignore_patterns("[123].png"))
    with create(place, embedder, pictures) as catalog:
        everything_there = index_images(catalog, read_collection(pictures), embedder).ids  # 33 images
        gone = {image_id(f"blue/more {number}.png") for number in range(4)}
        left = [key for key in everything_there if key not in gone]
        assert error_of(images_to_prune, catalog, left).field == "prune"  # more than a tenth
        assert set(images_to_prune(catalog, left, limit=4)["id"]) == gone
        assert error_of(images_to_prune, catalog, left, limit=3).field == "prune"
        assert len(images_to_prune(catalog, [*left, *sorted(gone)[1:]])) == 1
        assert images_to_prune(catalog, everything_there).empty
        others = [key for key in everything_there if key != image_id("white/0.png")]
        assert "white" in str(error_of(images_to_prune, catalog, others))  # all of a folder
        assert images_to_prune(catalog, others, limit=1)["path"].tolist() == ["white/0.png"]
        (pictures / "green").rename(pictures.parent / "away")  # as if not mounted
        there = [key for key in everything_there if key != image_id("green/0.png")]
        for _ in range(2):
            assert "green" in str(error_of(images_to_prune, catalog, there))
            (pictures / "green").mkdir(exist_ok=True)  # as a mount point is
        assert len(images_to_prune(catalog, there, limit=1)) == 1


def test_images_that_cannot_be_read_are_listed_and_keep_their_rows(catalog, embedder, pictures, tmp_path) -> None:
    red, ids = pictures / "red", everything(catalog)["id"].tolist()
    before = catalog.get(ids, with_embeddings=True)
    (red / "1.png").write_bytes(b"no picture")
    (red / "2.png").write_bytes((red / "3.png").read_bytes()[:100])
    embed_collection(embedder, "runs/x", read_collection(pictures), tmp_path / "embeddings")
    assert images_to_prune(catalog, index_embeddings(catalog, tmp_path / "embeddings").ids).empty
    (red / "new.png").write_bytes(b"no picture")
    (red / "gone.png").symlink_to(pictures / "nowhere.png")
    (red / "loop.png").symlink_to("loop.png")  # not missing, as in a folder without permission
    table = pd.DataFrame({"path": sorted(f"red/{path.name}" for path in red.iterdir()), "label": "red"})
    table.to_csv(pictures / "list.csv", index=False)
    changes = index_images(catalog, read_collection(pictures / "list.csv"), embedder)
    unreadable = ["1.png", "2.png", "gone.png", "loop.png", "new.png"]
    assert [Path(path).name for path, reason in changes.unreadable if reason] == unreadable
    assert (changes.added, changes.unchanged, len(catalog)) == (0, 2, 12)
    pd.testing.assert_frame_equal(catalog.get(ids, with_embeddings=True), before)
    kept = {path for path in table["path"] if image_id(path) in changes.ids}  # by prune
    assert kept == {*table["path"]} - {"red/gone.png"}


def test_embeddings_are_taken_over(address: str, embedder: Embedder, pictures: Path, embeddings: Path) -> None:
    told: list[tuple[int, int]] = []
    with create(address, embedder, pictures) as catalog:
        changes = index_embeddings(catalog, embeddings, lambda *step: told.append(step))
        assert (changes.added, changes.replaced, changes.unchanged) == (12, 0, 0)
        assert told == [(5, 12), (10, 12), (12, 12)]
        for rows, x in read_parts(embeddings):
            kept = catalog.get(rows["path"].map(image_id).tolist(), with_embeddings=True)
            pd.testing.assert_frame_equal(kept[rows.columns], rows, check_dtype=False)
            np.testing.assert_array_equal(np.stack(kept["embedding"].tolist()), x)
        assert index_embeddings(catalog, embeddings).unchanged == 12
        # the images themselves, afterwards, are what the embeddings said
        assert index_images(catalog, read_collection(pictures), embedder).unchanged == 12


def test_damaged_embeddings_leave_no_catalog(place: Path, embeddings: Path) -> None:
    table = pq.read_table(part := embeddings / "part-00001.parquet")

    def changed(column: str, values: list, kind: pa.DataType) -> pa.Table:
        return table.set_column(table.column_names.index(column), column, pa.array(values, kind))

    tables = [(table.drop_columns(["label"]), ""), (changed("embedding", ["a"] * len(table), pa.string()), "")]
    x, numbers = table["embedding"].to_pylist(), pa.list_(pa.float32())
    for value in ([0.5] * 4, None, [None, *x[2][1:]], [np.nan, *x[2][1:]], [2 * number for number in x[2]]):
        tables.append((changed("embedding", [*x[:2], value, *x[3:]], numbers), "row 2:"))
    paths = table["path"].to_pylist()
    tables.append((changed("path", [*paths[:2], None, *paths[3:]], pa.string()), "row 2:"))
    for damaged, problem in tables:
        pq.write_table(damaged, part)
        error = input_error(["index", place, embeddings])
        assert error.path == part and problem in error.problem and not place.exists()


def test_embeddings_edited_with_pandas(place: Path, embedder: Embedder, pictures: Path, embeddings: Path) -> None:
    rows = pd.read_parquet(part := embeddings / "part-00001.parquet")
    edited = rows.assign(label=["rose", "3", None, "rose", "rose"])[rows.index != 3]
    pd.concat([edited.assign(label="twice"), edited]).to_parquet(part)  # the last of a path counts
    with create(place, embedder, pictures) as catalog:
        assert index_embeddings(catalog, embeddings).added == 11
        assert index_embeddings(catalog, embeddings).unchanged == 11
        kept = catalog.get(rows["path"].map(image_id).tolist(), with_embeddings=True)
    assert kept["label"].tolist() == ["rose", "3", "", "rose"]
    expected = np.stack(rows["embedding"].drop(3).tolist())
    np.testing.assert_array_equal(np.stack(kept["embedding"].tolist()), expected)


def test_an_image_outside_of_the_root_is_refused(place: Path, embedder: Embedder, pictures: Path) -> None:
    with create(place, embedder, pictures / "red") as catalog:
        assert error_of(index_images, catalog, read_collection(pictures), embedder).path == pictures / "blue" / "0.png"
        assert index_images(catalog, read_collection(pictures / "red"), embedder).added == 4


def test_a_migration_goes_on_where_it_stopped_and_can_be_undone(catalog, place: Path, embedder, pictures) -> None:
    new = Counting(Encoder("test_vit", embedding_dim=16, image_size=32))
    catalog.delete([image_id("red/0.png")])
    before = everything(catalog)

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        migrate(catalog, new, "new", batch_size=2, report=interrupt)
    assert Catalog.open(str(place)).model == embedder.identity
    with pytest.raises(InputError, match="migrat"), catalog.store.undoable():
        pass
    assert "migrat" in str(error_of(catalog.store.undo))
    assert error_of(migrate, catalog, embedder, "old").field == "migrate_to"  # to another model
    (pictures / "blue" / "0.png").rename(pictures / "away.png")
    assert "blue/0.png" in error_of(migrate, catalog, new, "new", batch_size=2).problem
    (pictures / "away.png").rename(pictures / "blue" / "0.png")
    counts = migrate(catalog, new, "new", batch_size=2)
    assert new.images == 11
    files = [pictures / path for path in before["path"]]
    old_nearest, new_nearest = (nearest_others(model.embed(files)) for model in (embedder, new))
    assert counts == (11, (old_nearest != new_nearest).sum())

    query = new.embed([pictures / "green" / "1.png"])
    with Catalog.open(str(place)) as migrated:
        assert (migrated.dim, migrated.model, migrated.model_path) == (16, new.identity, "new")
        pd.testing.assert_frame_equal(everything(migrated), before)
        assert migrated.search(query, 1)[0][0].path == str(pictures / "green" / "1.png")
        assert [path.name for path in place.iterdir()] == ["images.lance"]
        one, x = before[:1], np.eye(8)[:1]
        get = partial(catalog.get, one["id"].tolist(), with_embeddings=True)
        for call in (partial(catalog.search, x), partial(catalog.upsert, one, x), partial(catalog.move, pictures), get):
            error = error_of(call)
            assert error.path == str(place) and "restart" in (error.hint or "")
        migrated.store.undo()
    with Catalog.open(str(place)) as undone:
        assert (undone.dim, undone.model) == (8, embedder.identity)
        pd.testing.assert_frame_equal(everything(undone), before)


def test_rows_written_during_a_migration_are_not_lost(place: Path, embedder, pictures: Path, monkeypatch) -> None:
    with create(place, embedder, pictures) as catalog, Catalog.open(str(place)) as other:
        index_images(catalog, read_collection(pictures / "red", pictures), embedder)
        blue = read_collection(pictures / "blue", pictures)
        error = error_of(migrate, catalog, embedder, "new", report=lambda *_: index_images(other, blue, embedder))
        assert error.path == str(place) and len(catalog) == 8
        with catalog.store.undoable(allow_migration=True):
            catalog.delete([image_id("red/0.png")])
        connect = lance._connect

        def write_during_the_copy(address: str) -> object:
            monkeypatch.setattr(lance, "_connect", connect)
            index_images(other, read_collection(pictures / "green", pictures), embedder)
            return connect(address)

        version = catalog.store.version
        with Catalog.open(catalog.store.migration) as migrated:
            monkeypatch.setattr(lance, "_connect", write_during_the_copy)
            error = error_of(catalog.store.replace_by, migrated.store, migrated.meta.model_dump_json(), version)
        assert error.path == str(place) and len(catalog) == 11
        migrate(catalog, embedder, "new")
        assert len(catalog) == 11


# ---- several boxes of one picture: an image each


NAMES = ["shelf.png#xywh=0,0,20,20", "shelf.png#xywh=30,5,20,20", "shelf.png"]
ROWS = "path,label,left,top,right,bottom\nshelf.png,tea,0,0,20,20\nshelf.png,rice,30,5,50,25\nshelf.png,,,,,\n"


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    """A picture of noise, listed by two boxes and as a whole."""
    pixels = np.random.default_rng(0).integers(0, 256, size=(40, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "shelf.png")
    (tmp_path / "list.csv").write_text(ROWS)
    return tmp_path


def test_each_box_is_an_image_of_its_own(embedder: Embedder, shelf: Path) -> None:
    images, picture = read_collection(shelf / "list.csv"), Image.open(shelf / "shelf.png")
    embed_collection(embedder, "x", images, shelf / "out")
    [(rows, embeddings)] = read_parts(shelf / "out")
    assert rows["path"].tolist() == NAMES and rows["content"].is_unique
    crops = [picture.crop((0, 0, 20, 20)), picture.crop((30, 5, 50, 25)), picture]
    np.testing.assert_allclose(embeddings, embedder.embed(crops), atol=1e-5)
    with create(shelf / "catalog", embedder, shelf) as catalog:
        assert index_images(catalog, images, embedder).added == 3
        assert index_images(catalog, images, embedder).unchanged == 3
        assert catalog.get([image_id(name) for name in NAMES])["path"].tolist() == NAMES
        assert catalog.info()["duplicates"] == 0
        assert images_to_prune(catalog, [image_id(NAMES[0])], limit=2)["path"].isin(NAMES[1:]).all()
        assert [delete_paths(catalog, [path]) for path in (NAMES[0], "shelf.png")] == [1, 2]


def test_the_commands_index_boxes_and_search_by_one(embedder: Embedder, shelf: Path, place: Path) -> None:
    embedder.save(shelf / "model")
    json_of(["index", place, shelf / "list.csv", "--model", shelf / "model", "--workers", 0])
    hit = json_of(["search", place, shelf / NAMES[0], "-k", 1])[0]["results"][0]
    assert (hit["path"], hit["box"], hit["label"]) == (str(shelf / "shelf.png"), "0,0,20,20", "tea")
    for bad in ("1.5,0,20,20", "50,30,40,40"):
        assert bad in str(input_error(["search", place, f"{shelf / 'shelf.png'}#xywh={bad}"]))


# ---- a server


@pytest.mark.server
def test_a_lost_server_is_an_error_of_one_line(milvus, embedder, pictures, tmp_path, capfd, monkeypatch) -> None:
    embedder.save(tmp_path / "model")
    with ExitStack() as server:
        address = f"{server.enter_context(forwarded(milvus, tmp_path))}/lost"
        monkeypatch.setattr("orthoproxy.cli.index._print_progress", lambda *_: server.close())  # after the first write
        words = ["--model", str(tmp_path / "model"), "--batch-size", "1", "--workers", "0"]
        assert main(["index", address, str(pictures / "list.csv"), *words]) == 2
    [error] = capfd.readouterr().err.splitlines()
    assert error.startswith(f"orthoproxy: {address}: ")


# ---- kills


@pytest.mark.slow
def test_killed_at_any_moment_what_was_told_is_there(embedder: Embedder, pictures: Path, tmp_path: Path) -> None:
    folder, count = tmp_path / "embeddings", 24_000
    embed_collection(embedder, "runs/x", read_collection(pictures), folder)
    x = np.random.default_rng(0).standard_normal((count, embedder.embedding_dim), dtype=np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    rows = pd.DataFrame({"path": [f"{number % 7}/{number}.png" for number in range(count)], "label": "a", "group": ""})
    rows["content"] = [f"{number:032x}" for number in range(count)]
    rows.assign(embedding=list(x)).to_parquet(folder / "part-00000.parquet")  # of images that are not there
    ids = rows["path"].map(image_id).tolist()
    place, moments = tmp_path / "catalog", random.Random(0)
    command = [sys.executable, "-m", "orthoproxy", "index", str(place), str(folder)]
    unfinished = 0
    for kill in range(30):
        before_work = kill % 5 == 4  # while the catalog is made or opened
        told = killed(command, 0 if before_work else moments.randint(1, 4), moments.uniform(0, 3 if before_work else 1))
        if not Catalog.exists(str(place)):
            assert told == 0
            continue
        with Catalog.open(str(place)) as catalog:
            kept = catalog.get(ids, with_embeddings=True).set_index("id")
        numbers = [number for number, key in enumerate(ids) if key in kept.index]
        assert set(range(told)) <= set(numbers), f"told of {told}, {len(numbers)} are there"
        if numbers:
            chosen = [ids[number] for number in numbers]
            np.testing.assert_array_equal(np.stack(kept["embedding"][chosen].tolist()), x[numbers])
            assert kept["content"][chosen].tolist() == rows["content"].iloc[numbers].tolist()
        if len(numbers) == len(ids):
            shutil.rmtree(place)  # and from the start
        else:
            unfinished += 1
    assert unfinished
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with Catalog.open(str(place)) as catalog:
        assert dict(everything(catalog)[["id", "content"]].to_numpy()) == dict(zip(ids, rows["content"], strict=True))
        hits = catalog.search(x[:3], 1)
        assert [found[0].id for found in hits] == ids[:3]


def killed(command: list[str], after_lines: int, seconds: float) -> int:
    """Run a command, kill it some seconds after so many lines, and return how many rows it said were safe."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        said = [process.stdout.readline() for _ in range(after_lines)]
        time.sleep(seconds)
        os.kill(process.pid, signal.SIGKILL)
        said += process.stdout.read().splitlines()
        assert "Traceback" not in process.stderr.read()  # it may have told of its progress
    return max((int(found[1]) for line in said if (found := re.fullmatch(r"indexed (\d+)/12\n?", line))), default=0)
