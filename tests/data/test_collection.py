"""Collections: images of a folder or a list, their paths from the root on, and labels where these are known."""

from pathlib import Path

import pandas as pd
import pytest
from errors import error_of
from stand_ins import touch

from orthoproxy.data import read_collection
from orthoproxy.data.sources.collection import make_collection


def rows(folder: Path, root: Path | None = None) -> list[list[str]]:
    return read_collection(folder, root).images[["path", "label"]].to_numpy().tolist()


def test_images_lie_at_any_depth_and_the_sub_folder_is_the_label(tmp_path: Path) -> None:
    touch(tmp_path, "z.png", "gull/a.JPG", "gull/old/b.webp", "auk/c.bmp", ".git/x.png", "gull/.x.png", "a.txt")
    assert rows(tmp_path) == [["auk/c.bmp", "auk"], ["gull/a.JPG", "gull"], ["gull/old/b.webp", "gull"], ["z.png", ""]]
    assert rows(tmp_path / "gull" / "old") == [["b.webp", ""]]
    assert rows(tmp_path / "gull", root=tmp_path) == [["gull/a.JPG", ""], ["gull/old/b.webp", "old"]]
    (tmp_path / "empty").mkdir()
    for source in (tmp_path / "empty", tmp_path / "nowhere"):
        error = error_of(read_collection, source)
        assert (error.field, error.path) == ("source", source)


def test_a_list_needs_paths_alone(tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    path.write_text("path\nb.png\nsub/../a.png\nb.png\n")
    assert rows(path) == [["b.png", ""], ["a.png", ""]]
    path.write_text("group,path,label,category\nnorth,b.png,,\nsouth,/abs/c.png,gull,sea\n")
    collection = read_collection(path, root=Path("/"))
    assert collection.images.to_numpy().tolist() == [["b.png", "", "north"], ["abs/c.png", "gull", "south"]]


@pytest.mark.parametrize(("text", "field"), [
    ("label\ngull\n", "source"), ("path\n", "source"), ("path\n/elsewhere/a.png\n", "root"),
    ("path\n../a.png\n", "root"), ("path,label\na.png,gull\n./a.png,tern\n", None),
])  # fmt: skip
def test_the_cause_of_an_unusable_list_is_named(text: str, field: str | None, tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text(text)
    error = error_of(read_collection, tmp_path / "list.csv")
    assert error.field == field and error.path


def test_a_table_needs_no_root(tmp_path: Path) -> None:
    paths = [str(tmp_path / name) for name in ("a/1.png", "a/b/2.png", "ab/3.png")]
    assert make_collection(pd.DataFrame({"path": paths})).root == tmp_path
    assert make_collection(pd.DataFrame({"path": paths[:2]})).images["path"].tolist() == ["1.png", "b/2.png"]
    error = error_of(make_collection, pd.DataFrame({"path": paths}), tmp_path / "a")
    assert (error.field, error.path) == ("root", paths[2])
