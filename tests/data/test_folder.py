"""A folder with a sub-folder a class: what counts as an image, and what is left out."""

from __future__ import annotations

from pathlib import Path

import pytest

from orthoproxy.core.errors import InputError
from orthoproxy.data import folder_table


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
    assert listed(tmp_path) == [("cat/a.png", "cat")]


def test_a_folder_named_like_an_image_is_a_folder(tmp_path: Path) -> None:
    touch(tmp_path, "cat/album.png/a.png", "dog.jpg/b.png")
    assert listed(tmp_path) == [("cat/album.png/a.png", "cat"), ("dog.jpg/b.png", "dog.jpg")]


def test_hidden_parents_of_the_root_do_not_hide_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path / ".cache" / "birds", "gull/a.png")
    assert listed(tmp_path / ".cache" / "birds") == [("gull/a.png", "gull")]
    monkeypatch.chdir(tmp_path / ".cache" / "birds")
    assert folder_table(Path()).path.tolist() == [str(tmp_path / ".cache/birds/gull/a.png")]


def test_linked_classes_are_classes(tmp_path: Path) -> None:
    touch(tmp_path / "store", "gull/a.png")
    touch(tmp_path / "root", "cat/b.png")
    (tmp_path / "root" / "gull").symlink_to(tmp_path / "store" / "gull", target_is_directory=True)
    assert listed(tmp_path / "root") == [("cat/b.png", "cat"), ("gull/a.png", "gull")]


def test_no_folder_or_no_class_is_named(tmp_path: Path) -> None:
    touch(tmp_path, "loose.png")
    for root in (tmp_path / "nothing", tmp_path, tmp_path / "loose.png"):
        with pytest.raises(InputError) as caught:
            folder_table(root)
        assert (caught.value.field, caught.value.path) == ("root", root)


def test_an_empty_class_is_ignored_or_named(tmp_path: Path) -> None:
    touch(tmp_path, "cat/a.png", "dog/notes.txt", ".hidden/notes.txt")
    assert listed(tmp_path) == [("cat/a.png", "cat")]
    with pytest.raises(InputError) as caught:
        folder_table(tmp_path, allow_empty=False)
    assert (caught.value.field, caught.value.path) == ("root", tmp_path / "dog")
