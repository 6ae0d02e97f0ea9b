"""In-Shop: counts, queries and gallery, where list and images lie, and what is wrong with a copy."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from stand_ins import run_card, write_inshop

from orthoproxy.core.errors import InputError
from orthoproxy.data.sources.inshop import inshop_table

CARD = Path(__file__).parents[2] / "docs" / "data" / "inshop.md"
HEADER = "image_name item_id evaluation_status"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inshop")
    write_inshop(folder, end="\r\n")
    return folder


@pytest.fixture(scope="module")
def table(root: Path) -> pd.DataFrame:
    return inshop_table(root)


def write_small(root: Path, **kwargs: object) -> None:
    write_inshop(root, images=(40, 20, 30), items=(8, 5), **kwargs)


def test_counts_are_those_of_the_protocol(table: pd.DataFrame) -> None:
    parts = table.groupby(["split", "role"])
    assert parts.size().to_dict() == {
        ("train", "both"): 25882,
        ("test", "query"): 14218,
        ("test", "gallery"): 12612,
    }
    assert parts["label"].nunique().to_dict() == {
        ("train", "both"): 3997,
        ("test", "query"): 3985,
        ("test", "gallery"): 3985,
    }
    assert set(table["group"]) == {""}


def test_queries_and_gallery_are_of_the_same_items(table: pd.DataFrame) -> None:
    labels = {role: set(table["label"][table["role"] == role]) for role in ("both", "query", "gallery")}
    assert labels["query"] == labels["gallery"]
    assert not labels["both"] & labels["query"]
    assert table["path"].str.extract(r"/(id_\d{8})/")[0].tolist() == table["label"].tolist()


def test_paths_are_absolute_in_the_order_of_the_list(table: pd.DataFrame, root: Path) -> None:
    lines = (root / "Eval" / "list_eval_partition.txt").read_text().splitlines()[2:]
    assert table["path"].tolist() == [str(root / "Img" / line.split()[0]) for line in lines]
    assert table["path"].is_unique


@pytest.mark.parametrize("place", ["Eval/list_eval_partition.txt", "list_eval_partition.txt"])
@pytest.mark.parametrize("folder", ["Img", "."])
def test_list_and_images_may_lie_in_two_places(
    place: str, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_small(tmp_path, place=place, folder=folder, pictures=range(1, 14))
    table = inshop_table(tmp_path)
    assert len(table) == 90
    assert all(Path(path).is_file() for path in table["path"])
    monkeypatch.chdir(tmp_path)
    assert inshop_table(Path()).equals(table)


def test_a_byte_order_mark_and_blanks_make_no_difference(tmp_path: Path) -> None:
    write_small(tmp_path)
    table = inshop_table(tmp_path)
    path = tmp_path / "Eval" / "list_eval_partition.txt"
    path.write_text("\n" + path.read_text().replace(" ", " \t").replace("\n", " \n\n"), encoding="utf-8-sig")
    assert inshop_table(tmp_path).equals(table)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"data\.root: no folder .*nothing"):
        inshop_table(tmp_path / "nothing")
    with pytest.raises(InputError, match=r"has no Eval/list_eval_partition\.txt and no list_eval_partition\.txt; give"):
        inshop_table(tmp_path)
    write_small(tmp_path)
    (tmp_path / "Img" / "img").rename(tmp_path / "Img" / "img_highres")
    with pytest.raises(
        InputError, match=r"no folder Img/img and no folder img; unpack img\.zip \(not img_highres\.zip\)"
    ):
        inshop_table(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"1\n{HEADER}\nimg/a.jpg id_1 val\n", r"line 3 of .*: evaluation_status is 'val'; it must be train, query or"),
        (
            f"2\n{HEADER}\nimg/a.jpg id_1 train\nimg/b.jpg train\n",
            r"line 4 of .* has 2 fields, not 3 \(image_name item",
        ),
        (
            f"2\n{HEADER}\nimg/a.jpg id_1 train\n",
            r"line 1 of .* says '2', but 1 images are listed; it may be cut short",
        ),
        (f"many\n{HEADER}\nimg/a.jpg id_1 train\n", r"says 'many', but 1 images are listed"),
        (f"{HEADER}\nimg/a.jpg id_1 train\nimg/b.jpg id_1 train\n", r"line 2 of .* is 'img/a\.jpg id_1 train' where"),
        ("1\nimg/a.jpg id_1 train\nimg/b.jpg id_1 train\n", r"line 2 of .* where the names 'image_name item_id"),
        (f"0\n{HEADER}\n", r"list_eval_partition\.txt lists no image"),
        (
            f"2\n{HEADER}\nimg/a.jpg id_1 train\nimg/b.jpg id_1 query\n",
            r"class 'id_1' is in train and in test",
        ),
    ],
)
def test_what_is_wrong_with_the_list_is_named(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "img").mkdir()
    (tmp_path / "list_eval_partition.txt").write_text(text)
    with pytest.raises(InputError, match=message):
        inshop_table(tmp_path)


def test_the_data_card_shows_what_its_command_prints(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "inshop").symlink_to(root)
    monkeypatch.chdir(tmp_path)
    [(printed, shown)] = run_card(CARD)
    assert printed == shown
