"""Images in Parquet files and WebDataset tars are those of the files that were packed."""

import io
import json
import lzma
import os
import shutil
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command_line import json_of
from errors import error_of, input_error

from orthoproxy.data import csv_table
from orthoproxy.data.sources.packed import unpack
from orthoproxy.embedding.embedder import Embedder
from orthoproxy.models import Encoder

SPLITS = ["train", "train", "test", "test", "test", "test"]
LABELS = ["auk", "gull", "tern", "tern", "wren", "wren"]


@pytest.fixture
def files(image_folder: Path, tmp_path: Path) -> list[Path]:
    shutil.copytree(image_folder, tmp_path / "files")
    return sorted((tmp_path / "files").rglob("*.png"))[:6]


def write_parquet(files: list[Path], out: Path, structure: bool = True) -> Path:
    images = [{"bytes": x.read_bytes(), "path": x.name} if structure else x.read_bytes() for x in files]
    columns = {"image": images, "label": LABELS, "split": SPLITS, "left": [1, *[None] * 5], "top": [2, *[None] * 5]}
    columns |= {"right": [31, *[None] * 5], "bottom": [22, *[None] * 5], "views": range(6)}
    pq.write_table(pa.table({name: list(values) for name, values in columns.items()}), out, row_group_size=2)
    return out


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def write_tar(files: list[Path], out: Path) -> Path:
    with tarfile.open(out, "w") as tar:
        for number, (file, label, split) in enumerate(zip(files, LABELS, SPLITS, strict=False)):
            values = json.dumps({"label": label, "split": split, "views": 1})
            text = ("json", values.encode()) if number else ("cls", f"{label}\n".encode())
            add(tar, f"../{number}.{file.suffix[1:].upper()}", file.read_bytes())  # the name is never a path
            add(tar, f"../{number}.{text[0]}", text[1])
    return out


@pytest.mark.parametrize("kind", ["parquet", "parquet of bytes", "webdataset"])
def test_images_and_columns_are_those_that_were_packed(kind: str, files: list[Path], tmp_path: Path) -> None:
    name, cache = kind.partition(" ")[0], tmp_path / "cache"
    if name == "parquet":
        packed = write_parquet(files, tmp_path / "x.parquet", structure="bytes" not in kind)
    else:
        packed = write_tar(files, tmp_path / "x.tar")
    listed = unpack(packed, name, cache)
    table = csv_table(listed)
    assert table["label"].tolist() == LABELS
    assert table["split"].tolist() == (["", *SPLITS[1:]] if name == "webdataset" else SPLITS)
    boxes = [path.partition("#")[2] for path in table["path"]]
    assert boxes == ["xywh=1,2,30,20" * (name == "parquet"), *[""] * 5]
    found = [Path(path.partition("#")[0]) for path in table["path"]]
    assert [path.read_bytes() for path in found] == [path.read_bytes() for path in files]
    before = found[0].stat().st_mtime_ns
    assert unpack(packed, name, cache) == listed and found[0].stat().st_mtime_ns == before
    os.utime(packed, ns=(1, 1))
    again = unpack(packed, name, cache)
    assert again != listed and csv_table(again).equals(table) and found[0].stat().st_mtime_ns == before
    assert csv_table(unpack(tmp_path, name, cache))["label"].tolist() == LABELS  # the only one in this folder


def test_images_keep_their_paths_when_the_file_grows_and_copies_have_their_own(files: list[Path], tmp_path) -> None:
    packed, cache = tmp_path / "x.tar", tmp_path / "cache"
    first = csv_table(unpack(write_tar(files[:3], packed), "webdataset", cache))["path"]
    grown = csv_table(unpack(write_tar([files[5], *files[:3], files[0]], packed), "webdataset", cache))["path"]
    assert grown[1:4].tolist() == first.tolist() and grown.nunique() == 5
    assert Path(grown[4]).read_bytes() == files[0].read_bytes()


def test_a_sample_has_one_image_whose_name_may_have_several_dots(files: list[Path], tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for number in range(2):
            add(tar, f"IMG_{number}.5x.png", files[number].read_bytes())
            add(tar, f"IMG_{number}.5x.cls", b"auk")
    assert csv_table(unpack(tmp_path / "x.tar", "webdataset", tmp_path))["label"].tolist() == ["auk", "auk"]
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for number in range(2):
            add(tar, f"2024.0{number}.png", files[number].read_bytes())
    assert "2024.01.png" in error_of(unpack, tmp_path / "x.tar", "webdataset", tmp_path).problem


def test_several_processes_may_unpack_at_once(files: list[Path], tmp_path: Path) -> None:
    packed, cache, start = write_tar(files, tmp_path / "x.tar"), tmp_path / "cache", Barrier(4)

    def work(_: int) -> Path:
        start.wait()
        return unpack(packed, "webdataset", cache)

    with ThreadPoolExecutor(4) as threads:
        (listed,) = set(threads.map(work, range(4)))
    assert [entry.name for entry in cache.iterdir()] == [listed.parent.name] and len(csv_table(listed)) == 6


def test_a_damaged_file_is_named_and_leaves_no_list(files: list[Path], tmp_path: Path) -> None:
    whole, cache = write_parquet(files, tmp_path / "x.parquet"), tmp_path / "cache"
    (cut := tmp_path / "cut.parquet").write_bytes(whole.read_bytes()[:-100])
    pq.write_table(pa.table({"picture": [b""]}), nameless := tmp_path / "nameless.parquet")
    pq.write_table(pa.table({"image": ["text"]}), text := tmp_path / "text.parquet")
    pages = whole.read_bytes()
    (damaged := tmp_path / "damaged.parquet").write_bytes(pages[:4] + bytes(range(64, 100)) + pages[40:])
    (torn := tmp_path / "torn.tar").write_bytes(write_tar(files, tmp_path / "x.tar").read_bytes()[:2000])
    xz = bytearray(lzma.compress((tmp_path / "x.tar").read_bytes()))
    xz[len(xz) // 2 :] = bytes(len(xz) - len(xz) // 2)
    (compressed := tmp_path / "compressed.tar").write_bytes(xz)
    kinds = dict.fromkeys((cut, damaged, nameless, text), "parquet") | dict.fromkeys((torn, compressed), "webdataset")
    texts = {"list": "[1]", "surrogate": json.dumps({"label": "\ud800a"}), "deep": "[" * 10**5}
    for name, text_of_json in texts.items():
        (tmp_path / "1.json").write_text(text_of_json)
        with tarfile.open(tmp_path / f"{name}.tar", "w") as tar:
            tar.add(files[0], "1.jpg")
            tar.add(tmp_path / "1.json", "1.json")
        kinds[tmp_path / f"{name}.tar"] = "webdataset"
    for path, kind in kinds.items():
        error = error_of(unpack, path, kind, cache)
        assert (error.field, error.path) == ("root", path) and str(error).isascii()
    assert error_of(unpack, tmp_path / "files", "parquet", cache).path == tmp_path / "files"
    assert not list(cache.rglob("*.csv")) and not list(cache.rglob("*.tmp"))


def test_commands_score_and_embed_them_as_files(files, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    Embedder(Encoder("test_vit", embedding_dim=8, image_size=32)).save(model := tmp_path / "model")
    tar = write_tar(files, tmp_path / "x.tar")
    listed = pd.DataFrame({"path": map(str, files), "label": LABELS, "split": ["", *SPLITS[1:]]})
    listed.to_csv(tmp_path / "files" / "x.csv", index=False)
    scores, found = (json_of(["evaluate", model, x, "--workers", 0]) for x in (tmp_path / "files" / "x.csv", tar))
    assert found["queries"] == 4 and found["model"] == scores["model"]
    parquet = write_parquet(files, tmp_path / "x.parquet")
    json_of(["embed", model, parquet, "--out", tmp_path / "out", "--workers", 0])
    embedded = pd.read_parquet(tmp_path / "out")
    expected = Embedder.load(model).embed([f"{files[0]}#xywh=1,2,30,20", *map(str, files[1:])])
    assert np.allclose(np.stack(embedded["embedding"]), expected, atol=1e-6) and embedded["label"].tolist() == LABELS
    index = ["index", tmp_path / "catalog", tar, "--workers", 0]
    write_tar(files[:5], tar)
    assert json_of([*index, "--model", model])["added"] == 5
    write_tar(files, tar)
    assert json_of(index).items() >= {"unchanged": 5, "added": 1}.items()
    pq.write_table(pa.table({"image": [files[0].read_bytes()], "fine_label": [1]}), parquet)
    error = input_error(["evaluate", model, parquet])
    assert (error.field, error.path) == ("data.root", str(parquet)) and "label" in error.problem
