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
    for root in (tmp_path / "nothing", tmp_path):
        with pytest.raises(InputError) as caught:
            inshop_table(root)
        assert (caught.value.field, caught.value.path) == ("root", root)
    write_small(tmp_path)
    (tmp_path / "Img" / "img").rename(tmp_path / "Img" / "img_highres")
    with pytest.raises(InputError) as caught:
        inshop_table(tmp_path)
    assert caught.value.path == tmp_path and "Img/img" in caught.value.problem


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (f"1\n{HEADER}\nimg/a.jpg id_1 val\n", "line 3"),
        (f"2\n{HEADER}\nimg/a.jpg id_1 train\nimg/b.jpg train\n", "line 4"),
        (f"2\n{HEADER}\nimg/a.jpg id_1 train\n", "line 1"),
        (f"many\n{HEADER}\nimg/a.jpg id_1 train\n", "'many'"),
        (f"{HEADER}\nimg/a.jpg id_1 train\nimg/b.jpg id_1 train\n", "line 2"),
        ("1\nimg/a.jpg id_1 train\nimg/b.jpg id_1 train\n", "line 2"),
        (f"0\n{HEADER}\n", "no images"),
        (f"2\n{HEADER}\nimg/a.jpg id_1 train\nimg/b.jpg id_1 query\n", "'id_1'"),
    ],
)
def test_a_damaged_list_is_named(text: str, found: str, tmp_path: Path) -> None:
    (tmp_path / "img").mkdir()
    (tmp_path / "list_eval_partition.txt").write_text(text)
    with pytest.raises(InputError) as caught:
        inshop_table(tmp_path)
    assert found in caught.value.problem


def test_the_data_card_shows_what_its_command_prints(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "inshop").symlink_to(root)
    monkeypatch.chdir(tmp_path)
    [(printed, shown)] = run_card(CARD)
    assert printed == shown
