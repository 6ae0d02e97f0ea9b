"""CUB-200-2011, Stanford Online Products and In-Shop: the retrieval split, layouts of copies, and damaged copies."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from errors import error_of
from stand_ins import SUPER_CLASSES, write_cub, write_inshop, write_sop

from orthoproxy.data import cub_table, inshop_table, sop_table

READERS = {"cub": cub_table, "sop": sop_table, "inshop": inshop_table}
SOP_HEADER = "image_id class_id super_class_id path"
SOP_TRAIN = f"{SOP_HEADER}\n1 7 1 a/a.JPG\n"
INSHOP_LIST = "Eval/list_eval_partition.txt"
INSHOP_HEADER = "image_name item_id evaluation_status"
# small stand-ins with 4 pictures, and their lists
WRITERS = {
    "cub": partial(write_cub, images=(200, 200), pictures={1, 101}),
    "sop": partial(write_sop, images=(30, 20), classes=(10, 5), pictures={11}),
    "inshop": partial(write_inshop, images=(40, 20, 20), items=(8, 5), pictures={9}),
}
LISTS = {
    "cub": ("images.txt", "image_class_labels.txt"),
    "sop": ("Ebay_train.txt", "Ebay_test.txt"),
    "inshop": (INSHOP_LIST,),
}


def test_cub_trains_on_classes_1_to_100(tmp_path: Path) -> None:
    WRITERS["cub"](tmp_path)
    table = cub_table(tmp_path)
    listed = [line.split()[1] for line in (tmp_path / "images.txt").read_text().splitlines()]
    assert table["path"].tolist() == [str(tmp_path / "images" / path) for path in listed]
    assert table["label"].tolist() == [path.split("/")[0] for path in listed]
    assert (table["split"] == "train").equals(table["label"].str[:3].astype(int) <= 100)
    assert table["label"].nunique() == 200 and set(table["role"]) == {"both"} and set(table["group"]) == {""}
    (tmp_path / "train_test_split.txt").unlink()  # for classification
    assert cub_table(tmp_path).equals(table)


def test_sop_trains_on_its_training_list(tmp_path: Path) -> None:
    WRITERS["sop"](tmp_path)
    table = sop_table(tmp_path)
    lines = [line.split() for name in LISTS["sop"] for line in (tmp_path / name).read_text().splitlines()[1:]]
    assert table["path"].tolist() == [str(tmp_path / fields[3]) for fields in lines]
    assert table["label"].tolist() == [fields[1] for fields in lines]
    assert table["category"].tolist() == [SUPER_CLASSES[int(fields[2]) - 1] for fields in lines]
    assert table["split"].tolist() == ["train"] * 30 + ["test"] * 20 and set(table["role"]) == {"both"}


def test_inshop_has_queries_and_a_gallery_of_the_same_items(tmp_path: Path) -> None:
    WRITERS["inshop"](tmp_path)
    table = inshop_table(tmp_path)
    lines = [line.split() for line in (tmp_path / INSHOP_LIST).read_text().splitlines()[2:]]
    assert table["path"].tolist() == [str(tmp_path / "Img" / fields[0]) for fields in lines]
    assert table["label"].tolist() == [fields[1] for fields in lines]
    numbers = {("train", "both"): 40, ("test", "query"): 20, ("test", "gallery"): 20}
    assert table.groupby(["split", "role"]).size().to_dict() == numbers
    labels = {role: set(table["label"][table["role"] == role]) for role in ("both", "query", "gallery")}
    assert labels["query"] == labels["gallery"] and not labels["both"] & labels["query"]


@pytest.mark.parametrize(("name", "folder", "options"), [
    ("cub", "CUB_200_2011", {}), ("sop", "Stanford_Online_Products", {}), ("inshop", "", {}),
    ("inshop", "", {"place": "list_eval_partition.txt"}), ("inshop", "", {"folder": "."}),
])  # fmt: skip
def test_layouts_of_copies_and_relative_roots(name: str, folder: str, options: dict, tmp_path, monkeypatch) -> None:
    WRITERS[name](tmp_path / folder, **options)
    table = READERS[name](tmp_path / folder)
    exist = table["path"].map(lambda path: Path(path).is_file())
    assert exist.sum() == {"cub": 4, "sop": 4, "inshop": 8}[name]
    assert READERS[name](tmp_path).equals(table)
    monkeypatch.chdir(tmp_path)
    assert READERS[name](Path()).equals(table)


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("rewrite", [
    lambda text: text.replace("\n", "\r\n").encode("utf-8-sig"), lambda text: text.replace("\n", "\r").encode(),
    lambda text: ("\n" + text.replace(" ", "\t  ").replace("\n", " \t\n\n") + "\n \n").encode(),
], ids=["windows", "old mac", "padded"])  # fmt: skip
def test_line_ends_and_blanks_make_no_difference(name: str, rewrite: Callable[[str], bytes], tmp_path: Path) -> None:
    WRITERS[name](tmp_path)
    table = READERS[name](tmp_path)
    for path in (tmp_path / place for place in LISTS[name]):
        path.write_bytes(rewrite(path.read_text()))
    assert READERS[name](tmp_path).equals(table)


@pytest.mark.parametrize("name", READERS)
def test_missing_folders_and_lists_are_named(name: str, tmp_path: Path) -> None:
    for root in (tmp_path / "nothing", tmp_path):
        assert error_of(READERS[name], root).path == root
    WRITERS[name](tmp_path)
    last = tmp_path / LISTS[name][-1]
    last.write_bytes(b"\xff\xfe1\x00 \x00")  # UTF-16
    assert error_of(READERS[name], tmp_path).path == last
    last.unlink()
    assert error_of(READERS[name], tmp_path).path == (tmp_path if name == "inshop" else last)
    if name == "inshop":
        WRITERS[name](tmp_path)
        (tmp_path / "Img" / "img").rename(tmp_path / "Img" / "img_highres")
        assert error_of(READERS[name], tmp_path).path == tmp_path


@pytest.mark.parametrize(("name", "lists", "at_fault", "found"), [
    ("cub", ["1 a/1.jpg\n2 a/2.jpg\n", "1 1\n"], "image_class_labels.txt", "image 2"),
    ("cub", ["1 a/1.jpg\n", "1 1\n7 1\n8 1\n"], "images.txt", "image 7"),
    ("cub", ["1 a/1.jpg\n1 a/2.jpg\n", "1 1\n"], "images.txt", "line 2"),
    ("cub", ["1 a/1.jpg\n2\n", "1 1\n2 1\n"], "images.txt", "line 2"),
    ("cub", ["1 a/1.jpg\n", "1 0\n"], "image_class_labels.txt", "'0'"),
    ("cub", ["1 a/1.jpg\n2 a/2.jpg\n", "1 1\n2 2\n"], "image_class_labels.txt", "'a'"),
    ("cub", ["\n", "1 1\n"], "images.txt", "no images"),
    ("sop", [SOP_TRAIN, f"{SOP_HEADER}\n1 8 1 a/b.JPG\n2 8 1\n"], "Ebay_test.txt", "line 3"),
    ("inshop", [f"1\n{INSHOP_HEADER}\nimg/a.jpg id_1 val\n", ""], INSHOP_LIST, "line 3"),
    ("inshop", [f"2\n{INSHOP_HEADER}\nimg/a.jpg id_1 train\n", ""], INSHOP_LIST, "line 1"),
])  # fmt: skip
def test_a_damaged_list_is_named(name: str, lists: list[str], at_fault: str, found: str, tmp_path: Path) -> None:
    for place, text in zip((*LISTS[name], "Img/img/a.jpg"), lists, strict=False):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_text(text)
    error = error_of(READERS[name], tmp_path)
    assert (error.field, error.path) == ("root", tmp_path / at_fault) and found in error.problem
