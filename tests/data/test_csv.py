"""Lists of images as people write them: byte-order marks, line ends, quotes, columns too many or too few."""

from __future__ import annotations

from pathlib import Path

import pytest

from orthoproxy.core.errors import InputError
from orthoproxy.data import csv_table


def write(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    path = folder / "list.csv"
    path.write_bytes(text.encode(encoding))
    return path


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_all_columns_are_read_in_the_order_of_the_file(end: str, encoding: str, tmp_path: Path) -> None:
    lines = [
        "label,extra,path,role,group,split,",
        "Möwe,1,b.png,query,north,test,",
        '"gull, herring",2,"sub/a, ""1"".png",,,train,',
        "",
        f"007,3,{tmp_path}/abs/c.png,gallery,NA,test,",
        "null,4,d.png,both,None,,",
    ]
    table = csv_table(write(tmp_path, end.join(lines) + end, encoding))
    assert table.to_numpy().tolist() == [
        [str(tmp_path / "b.png"), "Möwe", "test", "query", "north"],
        [str(tmp_path / 'sub/a, "1".png'), "gull, herring", "train", "both", ""],
        [str(tmp_path / "abs/c.png"), "007", "test", "gallery", "NA"],
        [str(tmp_path / "d.png"), "null", "", "both", "None"],
    ]


def test_two_columns_are_enough(tmp_path: Path) -> None:
    table = csv_table(write(tmp_path, "path , label\na.png,cat"))
    assert table.to_numpy().tolist() == [[str(tmp_path / "a.png"), "cat", "", "both", ""]]


def test_paths_start_from_root_where_there_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, "path,label\nx/a.png,cat\n")
    assert csv_table(path, root=Path("/data")).path.tolist() == ["/data/x/a.png"]
    monkeypatch.chdir(tmp_path)
    assert csv_table(Path("list.csv"), root=Path("images")).path[0] == str(tmp_path / "images/x/a.png")
    assert csv_table(Path("list.csv")).path[0] == str(tmp_path / "x/a.png")


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("path,class\na.png,cat\n", "csv"),
        ("file,label\na.png,cat\n", "csv"),
        ("a.png,cat\nb.png,dog\n", "csv"),
        ("path;label\na.png;cat\n", "csv"),
        ("", "csv"),
        ("path,label\n", None),
        ('path,label\n"a.png,cat\n', "csv"),
        ("path,label\na.png,\n", "label"),
        ("path,label\na.png\n", "csv"),
        ("path,label\n,cat\n", "path"),
        ("path,label,path\na.png,cat,b.png\n", "csv"),
        ("path,label,split\na.png,cat,training\n", "split"),
        ("path,label,role\na.png,cat,probe\n", "role"),
        ("path,label,split\na.png,cat,train\nb.png,cat,test\n", "split"),
    ],
)
def test_the_cause_is_named(text: str, field: str | None, tmp_path: Path) -> None:
    path = write(tmp_path, text)
    with pytest.raises(InputError) as caught:
        csv_table(path)
    assert caught.value.field == field and (field != "csv" or caught.value.path == path)


OUTSIDE = ["/etc/passwd", "../a.png", "x/../../a.png", "x/..", "/data/../a.png", "/database/a.png"]


@pytest.mark.parametrize("name", OUTSIDE)
def test_paths_stay_inside_the_root(name: str, tmp_path: Path) -> None:
    path = write(tmp_path, f"path,label\na.png,cat\n{name},cat\n")
    with pytest.raises(InputError) as caught:
        csv_table(path, root=Path("/data"))
    assert caught.value.field == "csv" and f"row 2 lists {name!r}" in caught.value.problem


@pytest.mark.parametrize("name", OUTSIDE)
def test_paths_of_a_trusted_list_may_lead_anywhere(name: str, tmp_path: Path) -> None:
    path = write(tmp_path, f"path,label\n{name},cat\n")
    assert csv_table(path, root=Path("/data"), allow_paths_outside_root=True).path.tolist() == [
        str(Path("/data") / name)
    ]


def test_what_was_checked_is_what_is_read(tmp_path: Path) -> None:
    """Through a link, ``..`` would be another folder than its name says."""
    (tmp_path / "elsewhere" / "deep").mkdir(parents=True)
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "link").symlink_to(tmp_path / "elsewhere" / "deep")
    path = write(tmp_path, "path,label\nlink/../a.png,cat\nlink/b.png,cat\n")
    found = csv_table(path, root=tmp_path / "root").path.tolist()
    assert found == [str(tmp_path / "root" / "a.png"), str(tmp_path / "root" / "link" / "b.png")]


def test_a_root_that_is_a_link_has_two_names(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "root").symlink_to(tmp_path / "real")
    names = [f"{tmp_path}/{folder}/a.png" for folder in ("real", "root")]
    path = write(tmp_path, "path,label\n" + "".join(f"{name},cat\n" for name in names))
    assert csv_table(path, root=tmp_path / "root").path.tolist() == names


@pytest.mark.parametrize("text", ["path,label\na.png,cat,x\nb.png,dog,y\n", "path,label\na.png,cat\nb.png,dog,y\n"])
def test_lines_with_more_fields_than_the_header_are_never_read_askew(text: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"list\.csv"):
        csv_table(write(tmp_path, text))


def test_other_encodings_are_refused(tmp_path: Path) -> None:
    for encoding in ("utf-16", "latin-1"):
        with pytest.raises(InputError, match="UTF-8"):
            csv_table(write(tmp_path, "path,label\na.png,Möwe\n", encoding))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "nothing.csv", tmp_path):
        with pytest.raises(InputError) as caught:
            csv_table(path)
        assert (caught.value.field, caught.value.path) == ("csv", path)
