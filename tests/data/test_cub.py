"""CUB-200-2011: the split of retrieval, lists joined by id, and what is wrong with a copy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from stand_ins import run_card, write_cub

from orthoproxy.core.errors import InputError
from orthoproxy.data import read_image
from orthoproxy.data.sources.cub import cub_table

CARD = Path(__file__).parents[2] / "docs" / "data" / "cub.md"


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the archive was unpacked in."""
    folder = tmp_path_factory.mktemp("cub")
    write_cub(folder / "CUB_200_2011")
    return folder


@pytest.fixture
def small(tmp_path: Path) -> Path:
    write_cub(tmp_path, images=(200, 200))
    return tmp_path


@pytest.fixture(scope="module")
def table(parent: Path) -> pd.DataFrame:
    return cub_table(parent)


def test_counts_are_those_of_the_protocol(table: pd.DataFrame) -> None:
    assert table.groupby("split").size().to_dict() == {"train": 5864, "test": 5924}
    assert table.groupby("split")["label"].nunique().to_dict() == {"train": 100, "test": 100}
    assert set(table["role"]) == {"both"} and set(table["group"]) == {""}


def test_classes_1_to_100_are_for_training(table: pd.DataFrame) -> None:
    number = table["label"].str[:3].astype(int)
    assert (table["split"] == "train").equals(number <= 100)


def test_paths_are_absolute_in_the_order_of_the_list(table: pd.DataFrame, parent: Path) -> None:
    root = parent / "CUB_200_2011"
    listed = [line.split()[1] for line in (root / "images.txt").read_text().splitlines()]
    assert table["path"].tolist() == [str(root / "images" / path) for path in listed]
    assert table["path"].is_unique
    assert table["label"].tolist() == [path.split("/")[0] for path in listed]


def test_either_folder_may_be_given(table: pd.DataFrame, parent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cub_table(parent / "CUB_200_2011").equals(table)
    monkeypatch.chdir(parent)
    assert cub_table(Path()).equals(table)
    assert cub_table(Path("CUB_200_2011")).equals(table)


def test_the_split_for_classification_is_not_used(small: Path) -> None:
    table = cub_table(small)
    (small / "train_test_split.txt").unlink()
    assert cub_table(small).equals(table)


def test_litter_of_an_archive_is_not_listed(table: pd.DataFrame, parent: Path) -> None:
    assert len(list(parent.rglob("._*.jpg"))) == 3
    assert not table["path"].str.contains("._", regex=False).any()


def windows(text: str) -> bytes:
    return text.replace("\n", "\r\n").encode("utf-8-sig")


def old_mac(text: str) -> bytes:
    return text.replace("\n", "\r").encode()


def padded(text: str) -> bytes:
    return ("\n" + text.replace(" ", "\t  ").replace("\n", " \t\n\n") + "\n \n").encode()


@pytest.mark.parametrize("rewrite", [windows, old_mac, padded])
def test_line_ends_and_blanks_make_no_difference(rewrite: Callable[[str], bytes], small: Path) -> None:
    table = cub_table(small)
    for name in ("images.txt", "image_class_labels.txt"):
        (small / name).write_bytes(rewrite((small / name).read_text()))
    assert cub_table(small).equals(table)


def test_images_asked_of_the_stand_in_can_be_read(tmp_path: Path) -> None:
    write_cub(tmp_path, images=(200, 200), pictures={1, 101})
    table = cub_table(tmp_path)
    exist = table["path"].map(lambda path: Path(path).exists())
    assert set(table["label"][exist]) == {"001.Bird_1", "101.Bird_101"}
    assert exist.sum() == 4
    assert {read_image(path).mode for path in table["path"][exist]} == {"RGB"}


def test_missing_lists_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing"):
        cub_table(tmp_path / "nothing")
    with pytest.raises(InputError, match=r"images\.txt"):
        cub_table(tmp_path)
    write_cub(tmp_path, images=(100, 100))
    (tmp_path / "image_class_labels.txt").unlink()
    with pytest.raises(InputError, match=r"image_class_labels\.txt"):
        cub_table(tmp_path)


IMAGES, LABELS = "images.txt", "image_class_labels.txt"


@pytest.mark.parametrize(
    ("images", "labels", "at_fault", "found"),
    [
        ("1 a/1.jpg\n2 a/2.jpg\n", "1 1\n", LABELS, "image 2"),
        ("1 a/1.jpg\n", "1 1\n7 1\n8 1\n", IMAGES, "image 7"),
        ("1 a/1.jpg\n1 a/2.jpg\n", "1 1\n", IMAGES, "line 2"),
        ("1 a/1.jpg\n", "1 1\n\n1 2\n", LABELS, "line 3"),
        ("1 a/1.jpg\n2\n", "1 1\n2 1\n", IMAGES, "line 2"),
        ("1 a/a bird.jpg\n", "1 1\n", IMAGES, "line 1"),
        ("1 a/1.jpg\n", "1 1 1\n", LABELS, "line 1"),
        ("1 a/1.jpg\n", "1 0\n", LABELS, "'0'"),
        ("1 a/1.jpg\n", "1 201\n", LABELS, "'201'"),
        ("1 a/1.jpg\n", "1 gull\n", LABELS, "'gull'"),
        ("1 a/1.jpg\n2 a/2.jpg\n", "1 1\n2 2\n", LABELS, "'a'"),
        ("\n", "1 1\n", IMAGES, "no images"),
        ("1 ../1.jpg\n", "1 1\n", IMAGES, "../1.jpg"),
    ],
)
def test_a_damaged_list_is_named(images: str, labels: str, at_fault: str, found: str, tmp_path: Path) -> None:
    (tmp_path / IMAGES).write_text(images)
    (tmp_path / LABELS).write_text(labels)
    with pytest.raises(InputError) as caught:
        cub_table(tmp_path)
    assert caught.value.path == tmp_path / at_fault and found in caught.value.problem


@pytest.mark.parametrize("name", ["images.txt", "image_class_labels.txt"])
def test_what_is_no_text_is_refused(name: str, small: Path) -> None:
    (small / name).write_bytes(b"\xff\xfe1\x00 \x00")
    with pytest.raises(InputError) as caught:
        cub_table(small)
    assert caught.value.path == small / name


def test_the_data_card_shows_what_its_command_prints(
    parent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "cub").symlink_to(parent)
    monkeypatch.chdir(tmp_path)
    [(printed, shown)] = run_card(CARD)
    assert printed == shown
