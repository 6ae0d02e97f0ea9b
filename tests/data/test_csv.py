"""Lists of images as people write them: byte-order marks, line ends, quotes, columns too many or too few."""

import os
from pathlib import Path

import pytest
from errors import error_of

from orthoproxy.data import csv_table


def write(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    path = folder / "list.csv"
    path.write_bytes(text.encode(encoding))
    return path


@pytest.mark.parametrize(("end", "encoding"), [("\n", "utf-8"), ("\r\n", "utf-8-sig")])
def test_all_columns_are_read_in_the_order_of_the_file(end: str, encoding: str, tmp_path: Path) -> None:
    lines = [
        "label,category,path,role,group,split,",
        "Möwe,1,b.png,query,north,test,",
        '"gull, herring",2,"sub/a, ""1"".png",,,train,',
        "",
        f"007,3,{tmp_path}/abs/c.png,gallery,NA,test,",
        "null,4,d.png,both,None,,",
    ]
    table = csv_table(write(tmp_path, end.join(lines) + end, encoding))
    assert table.to_numpy().tolist() == [
        [str(tmp_path / "b.png"), "Möwe", "test", "query", "north", "1"],
        [str(tmp_path / 'sub/a, "1".png'), "gull, herring", "train", "both", "", "2"],
        [str(tmp_path / "abs/c.png"), "007", "test", "gallery", "NA", "3"],
        [str(tmp_path / "d.png"), "null", "", "both", "None", "4"],
    ]


@pytest.mark.parametrize("content", [
    "a.png,cat\nb.png,dog\n", "", "path,label\n", 'path,label\n"a.png,cat\n', "path,label\na.png\n",
    "path,label,path\na.png,cat,b.png\n", "path,label,left,top,right,bottom\na.jpg,cat,5,5,5,9\n",
    "path,label,split\na.png,cat,training\n", "path,label,role\na.png,cat,probe\n",
    "path,label\na.png,Möwe\n".encode("utf-16"), "path,label\na.png,Möwe\n".encode("latin-1"),
])  # fmt: skip
def test_an_unusable_list_is_an_error_that_names_it(content: str | bytes, tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    error = error_of(csv_table, path)
    assert (error.field, error.path) == ("csv", path)
    path.unlink()
    assert error_of(csv_table, path).path == path


@pytest.mark.parametrize("name", ["../a.png", "x/..", "/database/a.png"])
def test_paths_stay_inside_the_root_unless_the_list_is_trusted(name: str, tmp_path: Path) -> None:
    path, root = write(tmp_path, f"path,label\na.png,cat\n{name},cat\n"), Path("/data")
    assert f"line 3 lists {name!r}" in error_of(csv_table, path, root).problem
    trusted = csv_table(path, root, allow_paths_outside_root=True)
    assert trusted["path"].tolist() == ["/data/a.png", os.path.normpath(root / name)]


def test_what_was_checked_is_what_is_read(tmp_path: Path) -> None:
    """Through a link, ``..`` would be another folder than its name says."""
    (tmp_path / "elsewhere" / "deep").mkdir(parents=True)
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "link").symlink_to(tmp_path / "elsewhere" / "deep")
    path = write(tmp_path, "path,label\nlink/../a.png,cat\nlink/b.png,cat\n")
    found = csv_table(path, root=tmp_path / "root").path.tolist()
    assert found == [str(tmp_path / "root" / "a.png"), str(tmp_path / "root" / "link" / "b.png")]


def test_a_root_that_is_a_link_has_two_names_of_the_same_images(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "root").symlink_to(tmp_path / "real")
    names = [f"{tmp_path}/{name}" for name in ("real/a.png", "root/a.png", "root/b.png#xywh=1,2,3,4")]
    path = write(tmp_path, "path,label\n" + "".join(f'"{name}",cat\n' for name in names))
    assert csv_table(path, root=tmp_path / "root").path.tolist() == [names[0], f"{tmp_path}/real/b.png#xywh=1,2,3,4"]


@pytest.mark.parametrize("row", ["../x.png,cat", "x.png,", "x.png,cat,", ",cat"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_rows_are_numbered_as_the_lines_of_the_file(row: str, end: str, tmp_path: Path) -> None:
    lines = ["", "path,label", "", 'a.png,"herring', 'gull"', "b.png,cat", "", row]
    assert error_of(csv_table, write(tmp_path, end.join(lines) + end)).problem.startswith("line 8")
