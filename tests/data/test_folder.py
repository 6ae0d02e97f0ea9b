"""A folder with a sub-folder a class: what counts as an image, and what is left out."""

import os
import re
import tempfile
from pathlib import Path

import pytest
from errors import error_of
from stand_ins import touch

from orthoproxy.core.progress import note_once
from orthoproxy.data import assign_split, folder_table, read_collection
from orthoproxy.data.images import readable_suffixes
from orthoproxy.data.sources import folder
from orthoproxy.data.sources.folder import labeled_files
from orthoproxy.runs.config import DataConfig
from orthoproxy.runs.dataset import read_table


def listed(root: Path) -> list[tuple[str, str]]:
    table = folder_table(root)
    return [(str(Path(path).relative_to(root)), label) for path, label in zip(table.path, table.label, strict=True)]


def test_classes_are_sub_folders_and_what_is_hidden_loose_or_no_image_is_left_out(tmp_path: Path) -> None:
    touch(tmp_path, "cat/a.JPG", "cat/.hidden.png", "cat/._x.jpg", ".thumbnails/x.png", "cat/.git/x.png", "top.png")
    touch(tmp_path, "cat/notes.txt", "cat/png", "cat/x.png.part", "cat/paper.pdf", "cat/clip.mp4", "über/b/1.bmp")
    touch(tmp_path, "cat/album.png/a.png", "dog.jpg/b.webp")  # folders
    assert listed(tmp_path) == [
        ("cat/a.JPG", "cat"), ("cat/album.png/a.png", "cat"), ("dog.jpg/b.webp", "dog.jpg"), ("über/b/1.bmp", "über"),
    ]  # fmt: skip


def test_linked_classes_and_hidden_parents(tmp_path: Path) -> None:
    root = tmp_path / ".cache" / "birds"
    touch(tmp_path, "store/gull/a.png", ".cache/birds/cat/b.png")
    (root / "gull").symlink_to(tmp_path / "store" / "gull", target_is_directory=True)
    assert listed(root) == [("cat/b.png", "cat"), ("gull/a.png", "gull")]


def test_no_folder_no_class_and_an_empty_class_are_named(tmp_path: Path) -> None:
    touch(tmp_path, "loose.png", ".hidden/notes.txt", "dog/notes.txt")
    for root in (tmp_path / "nothing", tmp_path, tmp_path / "loose.png"):
        error = error_of(folder_table, root)
        assert (error.field, error.path) == ("root", root)
    touch(tmp_path, "cat/a.png")
    assert listed(tmp_path) == [("cat/a.png", "cat")]
    error = error_of(folder_table, tmp_path, allow_empty=False)
    assert (error.field, error.path) == ("root", tmp_path / "dog")


def test_a_folder_that_cannot_be_listed_is_an_error() -> None:
    with tempfile.TemporaryDirectory() as folder:  # every user may enter this one, unlike `tmp_path`
        root, user = Path(folder), os.geteuid()
        touch(root, "gull/1.jpg", "gull/winter/2.jpg")
        root.chmod(0o755)
        (root / "gull" / "winter").chmod(0)
        os.seteuid(65534 if user == 0 else user)  # root may list everything
        try:
            assert error_of(labeled_files, root).path == str(root / "gull" / "winter")
        finally:
            os.seteuid(user)
            (root / "gull" / "winter").chmod(0o755)


def notes(printed: str) -> dict[str, int]:
    """Return an example and the number of files of each reason."""
    lines = printed.splitlines()
    found = [re.search(r": ([\d,]+) .* left out, for example (.*)\. Hint: .", line) for line in lines]
    return {match[2]: int(match[1]) for match in found if match}


def test_what_is_left_out_is_counted_by_reason(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(folder, "readable_suffixes", lambda: readable_suffixes() - {".heic"})  # without its extra
    touch(tmp_path, "tern/1.JPG", "tern/2.MPO", "top.png", "store/x/1.png")
    touch(tmp_path, *(f"gull/{number}.jxl" for number in range(9)), "gull/a.txt", "gull/IMG_1", "gull/IMG_2")
    touch(tmp_path, "gull/1.HEIC", "tern/2.heic")
    for number in range(4):
        (tmp_path / "gull" / f"dead{number}.jpg").symlink_to("/nowhere/1.jpg")
    (tmp_path / "gull" / "loop.jpg").symlink_to("loop.jpg")
    (tmp_path / "gull" / "far").symlink_to(tmp_path / "store" / "x", target_is_directory=True)
    touch(tmp_path, os.fsdecode(b"gull/caf\xe9.jpg"), os.fsdecode(b"caf\xe9/1.png"))
    assert listed(tmp_path) == [("store/x/1.png", "store"), ("tern/1.JPG", "tern"), ("tern/2.MPO", "tern")]
    reasons = {"gull/0.jxl": 10, "gull/IMG_1": 2, "gull/dead0.jpg": 5, "gull/far": 1, "caf\\udce9/1.png": 2}
    reasons |= {"gull/1.HEIC": 2}
    assert notes(printed := capsys.readouterr().err) == reasons | {"top.png": 1}
    assert "9 .jxl, 1 .txt" in printed and "orthoproxy[heic]" in printed
    note_once.cache_clear()
    assert len(labeled_files(tmp_path)) == 4  # images of no class, too
    assert notes(capsys.readouterr().err) == reasons


def test_system_folders_and_patterns_are_ignored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    touch(tmp_path, "gull/1.png", "gull/Thumbs.db", "gull/@eaDir/1.png", "$RECYCLE.BIN/x.png", "lost+found/1.jpg")
    touch(tmp_path, "System Volume Information/a.bin", "gull/.picasa/1.jpg", "drafts/1.png", "gull/deep/er/old_1.png")
    names = {("gull/1.png", "gull"), ("drafts/1.png", "drafts"), ("gull/deep/er/old_1.png", "gull")}
    assert set(listed(tmp_path)) == names and not notes(capsys.readouterr().err)
    table = read_table(DataConfig(name="folder", root=str(tmp_path), ignore=["drafts", "*/old_*"]))
    assert table["path"].tolist() == [str(tmp_path / "gull" / "1.png")]
    assert folder_table(tmp_path, ignore=["gull/deep"])["label"].tolist() == ["drafts", "gull"]


def test_folders_of_splits_are_no_classes(tmp_path: Path) -> None:
    touch(tmp_path, "Train/gull/a.png", "Train/tern/deep/b.png", "val/auk/c.png", "test/wren/d.png", "test/.x/e.png")
    touch(tmp_path, "test/loose.png", ".cache/gull/f.png", "top.png")
    table = folder_table(tmp_path, allow_empty=False)
    assert table[["label", "split"]].to_numpy().tolist() == [
        ["gull", "train"], ["tern", "train"], ["wren", "test"], ["auk", "validation"],
    ]  # fmt: skip
    assert read_collection(tmp_path).images["label"].tolist() == ["gull", "tern", "", "wren", "", "auk"]
    (tmp_path / "val" / "owl").mkdir()
    assert error_of(folder_table, tmp_path, allow_empty=False).path == tmp_path / "val" / "owl"
    touch(tmp_path, "test/gull/g.png")
    assert error_of(assign_split, folder_table(tmp_path), 0.0).field == "split_by"


@pytest.mark.parametrize("names", [("train/a.png", "test/b.png"), ("train/x/a.png", "gull/y/b.png")])
def test_classes_may_be_called_train_and_test(names: tuple[str, str], tmp_path: Path) -> None:
    touch(tmp_path, *names)
    table = folder_table(tmp_path)
    assert sorted(table["label"]) == sorted(name.split("/")[0] for name in names) and set(table["split"]) == {""}
