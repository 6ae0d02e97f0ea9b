"""Stanford Online Products: counts, labels, and what is wrong with a copy."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from stand_ins import run_card, write_sop

from orthoproxy.core.errors import InputError
from orthoproxy.data.sources.sop import sop_table

CARD = Path(__file__).parents[2] / "docs" / "data" / "sop.md"
HEADER = "image_id class_id super_class_id path"


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the archive was unpacked in."""
    folder = tmp_path_factory.mktemp("sop")
    write_sop(folder / "Stanford_Online_Products", end="\r\n")
    return folder


@pytest.fixture(scope="module")
def table(parent: Path) -> pd.DataFrame:
    return sop_table(parent)


def test_counts_are_those_of_the_protocol(table: pd.DataFrame) -> None:
    assert table.groupby("split").size().to_dict() == {"train": 59551, "test": 60502}
    assert table.groupby("split")["label"].nunique().to_dict() == {"train": 11318, "test": 11316}
    assert set(table["role"]) == {"both"} and set(table["group"]) == {""}


def test_labels_are_the_class_numbers_which_go_on_in_the_test(table: pd.DataFrame) -> None:
    number = table["label"].astype(int)
    assert (table["split"] == "train").equals(number <= 11318)
    assert sorted(set(number)) == list(range(1, 22635))
    item = table["path"].str.extract(r"/(\d+)_\d+\.JPG$")[0].astype(int)
    assert (item - 111085122871).equals(number)


def test_paths_are_absolute_in_the_order_of_the_lists(table: pd.DataFrame, parent: Path) -> None:
    root = parent / "Stanford_Online_Products"
    lists = [(root / name).read_text().splitlines()[1:] for name in ("Ebay_train.txt", "Ebay_test.txt")]
    assert table["path"].tolist() == [str(root / line.split()[3]) for lines in lists for line in lines]
    assert table["path"].is_unique


def test_either_folder_may_be_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "Stanford_Online_Products"
    write_sop(root, images=(30, 20), classes=(10, 5), pictures={3})
    table = sop_table(tmp_path)
    assert sop_table(root).equals(table)
    monkeypatch.chdir(root)
    assert sop_table(Path()).equals(table)
    exist = table["path"].map(lambda path: Path(path).exists())
    assert table["label"][exist].tolist() == ["3", "3", "3"]


def test_a_byte_order_mark_and_blanks_make_no_difference(tmp_path: Path) -> None:
    write_sop(tmp_path, images=(30, 20), classes=(10, 5))
    table = sop_table(tmp_path)
    for name in ("Ebay_train.txt", "Ebay_test.txt"):
        text = (tmp_path / name).read_text().replace(" ", "  ").replace("\n", " \n")
        (tmp_path / name).write_text(text + "\n", encoding="utf-8-sig")
    assert sop_table(tmp_path).equals(table)


def test_missing_lists_are_named(tmp_path: Path) -> None:
    for root in (tmp_path / "nothing", tmp_path):
        with pytest.raises(InputError) as caught:
            sop_table(root)
        assert (caught.value.field, caught.value.path) == ("root", root)
    write_sop(tmp_path, images=(30, 20), classes=(10, 5))
    (tmp_path / "Ebay_test.txt").unlink()
    with pytest.raises(InputError) as caught:
        sop_table(tmp_path)
    assert caught.value.path == tmp_path / "Ebay_test.txt"


@pytest.mark.parametrize(
    ("test", "found"),
    [
        (f"{HEADER}\n1 8 1 a/b.JPG\n2 8 1\n", "line 3"),
        (f"{HEADER}\n1 8 1 a/my b.JPG\n", "line 2"),
        (f"1 8 1 a/b.JPG\n{HEADER}\n", "line 1"),
        (f"{HEADER}\n", "no images"),
        ("", "no images"),
    ],
)
def test_a_damaged_list_is_named(test: str, found: str, tmp_path: Path) -> None:
    (tmp_path / "Ebay_train.txt").write_text(f"{HEADER}\n1 7 1 a/a.JPG\n")
    (tmp_path / "Ebay_test.txt").write_text(test)
    with pytest.raises(InputError) as caught:
        sop_table(tmp_path)
    assert caught.value.path == tmp_path / "Ebay_test.txt" and found in caught.value.problem


def test_a_class_in_both_lists_is_an_error(tmp_path: Path) -> None:
    for name in ("Ebay_train.txt", "Ebay_test.txt"):
        (tmp_path / name).write_text(f"{HEADER}\n1 7 1 a/b.JPG\n")
    with pytest.raises(InputError) as caught:
        sop_table(tmp_path)
    assert caught.value.field == "split"


def test_the_data_card_shows_what_its_command_prints(
    parent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "sop").symlink_to(parent)
    monkeypatch.chdir(tmp_path)
    [(printed, shown)] = run_card(CARD)
    assert printed == shown
