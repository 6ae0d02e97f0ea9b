"""A folder with a sub-folder a class: what counts as an image, and what is left out."""

import os
from pathlib import Path

import pytest
from errors import error_of

from orthoproxy.data import folder_table, read_collection
from orthoproxy.data.sources.folder import labelled_files


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def listed(root: Path) -> list[tuple[str, str]]:
    table = folder_table(root)
    return [(str(Path(path).relative_to(root)), label) for path, label in zip(table.path, table.label, strict=True)]


def test_classes_are_the_sub_folders_and_images_may_lie_deeper(tmp_path: Path) -> None:
    touch(tmp_path, "dog/b.png", "dog/a.JPG", "cat/deep/er/x.jpeg", "cat/y.webp", "über/1.bmp")
    assert listed(tmp_path) == [
        ("cat/deep/er/x.jpeg", "cat"), ("cat/y.webp", "cat"), ("dog/a.JPG", "dog"), ("dog/b.png", "dog"),
        ("über/1.bmp", "über"),
    ]  # fmt: skip


def test_what_is_hidden_loose_or_no_image_is_left_out(tmp_path: Path) -> None:
    touch(tmp_path, "cat/a.png", "cat/.hidden.png", "cat/._x.jpg", ".thumbnails/x.png", "cat/.git/x.png", "top.png")
    touch(tmp_path, "cat/notes.txt", "cat/png", "cat/x.png.part", "cat/paper.pdf", "cat/clip.mp4")
    touch(tmp_path, "cat/album.png/a.png", "dog.jpg/b.png")  # folders
    assert listed(tmp_path) == [("cat/a.png", "cat"), ("cat/album.png/a.png", "cat"), ("dog.jpg/b.png", "dog.jpg")]


def test_linked_classes_and_hidden_parents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / ".cache" / "birds"
    touch(tmp_path, "store/gull/a.png", ".cache/birds/cat/b.png")
    (root / "gull").symlink_to(tmp_path / "store" / "gull", target_is_directory=True)
    assert listed(root) == [("cat/b.png", "cat"), ("gull/a.png", "gull")]
    monkeypatch.chdir(root)
    assert folder_table(Path()).path.tolist() == [str(root / "cat/b.png"), str(root / "gull/a.png")]


def test_no_folder_no_class_and_an_empty_class_are_named(tmp_path: Path) -> None:
    touch(tmp_path, "loose.png", ".hidden/notes.txt", "dog/notes.txt")
    for root in (tmp_path / "nothing", tmp_path, tmp_path / "loose.png"):
        error = error_of(folder_table, root)
        assert (error.field, error.path) == ("root", root)
    touch(tmp_path, "cat/a.png")
    assert listed(tmp_path) == [("cat/a.png", "cat")]
    error = error_of(folder_table, tmp_path, allow_empty=False)
    assert (error.field, error.path) == ("root", tmp_path / "dog")


def test_a_folder_that_cannot_be_listed_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "gull/1.jpg", "gull/winter/2.jpg")
    scandir = os.scandir

    def failing(path: str) -> object:
        if str(path).endswith("winter"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", failing)
    assert error_of(labelled_files, tmp_path).path == str(tmp_path / "gull" / "winter")


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
    error = error_of(folder_table, tmp_path)
    assert (error.field, error.path) == ("root", tmp_path)


@pytest.mark.parametrize("names", [("train/a.png", "test/b.png"), ("train/x/a.png", "gull/y/b.png")])
def test_classes_may_be_called_train_and_test(names: tuple[str, str], tmp_path: Path) -> None:
    touch(tmp_path, *names)
    table = folder_table(tmp_path)
    assert sorted(table["label"]) == sorted(name.split("/")[0] for name in names) and set(table["split"]) == {""}
