"""Cars-196: one table from every layout, the order of the classes, and what is wrong with a copy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from stand_ins import (
    BOX,
    CAR_NAMES,
    run_card,
    write_cars_by_class,
    write_cars_in_one_folder,
    write_cars_in_two_folders,
    write_mat,
)
from torchvision.datasets import StanfordCars

from orthoproxy.core.errors import InputError
from orthoproxy.data.sources.cars import cars_table

CARD = Path(__file__).parents[2] / "docs" / "data" / "cars.md"
LAYOUTS = {"A": write_cars_in_one_folder, "B": write_cars_in_two_folders, "C": write_cars_by_class}
SMALL = (98 * 4, 98 * 4)
RAM = "Ram C/V Cargo Van Minivan 2012"


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {layout: tmp_path_factory.mktemp(f"cars-{layout}") for layout in LAYOUTS}
    for layout, write in LAYOUTS.items():
        write(folders[layout])
    return folders


@pytest.fixture(scope="module")
def tables(roots: dict[str, Path]) -> dict[str, pd.DataFrame]:
    return {layout: cars_table(root) for layout, root in roots.items()}


def classes(table: pd.DataFrame) -> Counter[tuple[str, ...]]:
    """How many images of each class there are, with all that is known of them but their paths."""
    return Counter(table[["label", "split", "role", "group"]].itertuples(index=False, name=None))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_counts_are_those_of_the_protocol(layout: str, tables: dict[str, pd.DataFrame]) -> None:
    table = tables[layout]
    assert table.groupby("split").size().to_dict() == {"train": 8054, "test": 8131}
    assert table.groupby("split")["label"].nunique().to_dict() == {"train": 98, "test": 98}
    assert set(table["role"]) == {"both"} and set(table["group"]) == {""}
    assert table["path"].is_unique


@pytest.mark.parametrize("layout", LAYOUTS)
def test_classes_1_to_98_are_for_training(layout: str, tables: dict[str, pd.DataFrame]) -> None:
    table = tables[layout]
    assert set(table["label"][table["split"] == "train"]) == set(CAR_NAMES[:98])
    assert set(table["label"][table["split"] == "test"]) == set(CAR_NAMES[98:])


def test_all_layouts_give_the_same_classes(tables: dict[str, pd.DataFrame]) -> None:
    assert classes(tables["A"]) == classes(tables["B"]) == classes(tables["C"])


def test_paths_are_those_of_the_layout(tables: dict[str, pd.DataFrame], roots: dict[str, Path]) -> None:
    paths = {layout: table["path"].tolist() for layout, table in tables.items()}
    assert paths["A"][0] == str(roots["A"] / "car_ims" / "000001.jpg")
    assert paths["B"][0] == str(roots["B"] / "cars_train" / "00001.jpg")
    assert paths["B"][-1] == str(roots["B"] / "cars_test" / "08092.jpg")
    assert paths["C"][0].startswith(str(roots["C"] / "train" / "AM General Hummer SUV 2000"))
    for path, label in zip(paths["C"], tables["C"]["label"], strict=True):
        assert Path(path).parent.name == label.replace("/", "-")
        assert not Path(path).name.startswith("._")


def test_alphabetical_order_gives_the_official_halves_but_not_the_official_numbers() -> None:
    assert len(CAR_NAMES) == 196
    assert sorted(CAR_NAMES)[:98] != CAR_NAMES[:98]
    assert set(sorted(CAR_NAMES)[:98]) == set(CAR_NAMES[:98])
    assert (CAR_NAMES[97], CAR_NAMES[98]) == ("Eagle Talon Hatchback 1998", "FIAT 500 Abarth 2012")


@pytest.mark.parametrize("slash", ["-", "_", "", " "])
def test_the_name_with_a_slash_is_the_official_one(slash: str, tmp_path: Path) -> None:
    write_cars_by_class(tmp_path, SMALL, slash=slash)
    assert set(cars_table(tmp_path)["label"]) == set(CAR_NAMES)


def test_the_name_with_a_slash_may_have_become_two_folders(tmp_path: Path) -> None:
    write_cars_by_class(tmp_path, SMALL, parts=("",), slash="-")
    (tmp_path / "Ram C").mkdir()
    (tmp_path / "Ram C-V Cargo Van Minivan 2012").rename(tmp_path / "Ram C" / "V Cargo Van Minivan 2012")
    assert Counter(cars_table(tmp_path)["label"])[RAM] == 4


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("inside", ["stanford_cars", "car_data", "car_data/car_data"])
def test_a_copy_may_wrap_all_in_a_folder(layout: str, inside: str, tmp_path: Path) -> None:
    LAYOUTS[layout](tmp_path / inside, SMALL)
    assert len(cars_table(tmp_path)) == sum(SMALL)


def test_class_folders_may_lie_in_the_root(tmp_path: Path) -> None:
    write_cars_by_class(tmp_path / "parts", SMALL)
    write_cars_by_class(tmp_path / "root", SMALL, parts=("",))
    (tmp_path / "root" / ".thumbnails").mkdir()
    (tmp_path / "root" / "README.txt").touch()
    assert classes(cars_table(tmp_path / "root")) == classes(cars_table(tmp_path / "parts"))


def test_lists_may_lie_in_devkit_or_beside_it(tmp_path: Path) -> None:
    write_cars_in_two_folders(tmp_path / "B", SMALL, test_list="devkit")
    table = cars_table(tmp_path / "B")
    for path in (tmp_path / "B" / "devkit").iterdir():
        path.rename(tmp_path / "B" / path.name)
    assert cars_table(tmp_path / "B").equals(table)
    write_cars_in_one_folder(tmp_path / "A", SMALL)
    table = cars_table(tmp_path / "A")
    (tmp_path / "A" / "devkit").mkdir()
    (tmp_path / "A" / "cars_annos.mat").rename(tmp_path / "A" / "devkit" / "cars_annos.mat")
    assert cars_table(tmp_path / "A").equals(table)


def test_images_may_lie_in_a_folder_of_the_same_name(tmp_path: Path) -> None:
    write_cars_in_two_folders(tmp_path, SMALL, pictures={1})
    for name in ("cars_train", "cars_test"):
        (tmp_path / name).rename(tmp_path / "moved")
        (tmp_path / name).mkdir()
        (tmp_path / "moved").rename(tmp_path / name / name)
    table = cars_table(tmp_path)
    of_class_1 = table["path"][table["label"] == CAR_NAMES[0]]
    assert len(of_class_1) == 4 and all(Path(path).is_file() for path in of_class_1)


def test_torchvision_reads_the_same_from_the_stand_in(tmp_path: Path) -> None:
    """An independent reader, written for the original files."""
    write_cars_in_two_folders(tmp_path / "stanford_cars", SMALL, test_list=".")
    expected = []
    for split in ("train", "test"):
        dataset = StanfordCars(tmp_path, split)
        expected += [(path, dataset.classes[number]) for path, number in dataset._samples]
    table = cars_table(tmp_path)
    assert list(zip(table["path"], table["label"], strict=True)) == expected


def test_the_split_for_classification_is_not_used(tmp_path: Path) -> None:
    rows = [
        {"relative_im_path": f"car_ims/{label:06d}.jpg", **BOX, "class": np.uint8(label), "test": np.uint8(flag)}
        for label, flag in ((98, 1), (99, 0))
    ]
    (tmp_path / "car_ims").mkdir()
    write_mat(tmp_path / "cars_annos.mat", rows, CAR_NAMES)
    assert cars_table(tmp_path)["split"].tolist() == ["train", "test"]


def test_a_single_annotation_is_a_list_of_one(tmp_path: Path) -> None:
    (tmp_path / "car_ims").mkdir()
    write_mat(tmp_path / "cars_annos.mat", [{"relative_im_path": "car_ims/1.jpg", "class": np.uint8(174)}], CAR_NAMES)
    table = cars_table(tmp_path)
    assert table[["path", "label", "split"]].to_numpy().tolist() == [[str(tmp_path / "car_ims/1.jpg"), RAM, "test"]]


def test_relative_roots_give_absolute_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for layout, write in LAYOUTS.items():
        write(tmp_path / layout, SMALL)
        monkeypatch.chdir(tmp_path / layout)
        assert cars_table(Path()).equals(cars_table(tmp_path / layout))


def error_of(root: Path) -> InputError:
    with pytest.raises(InputError) as caught:
        cars_table(root)
    assert caught.value.field == "root"
    return caught.value


def test_no_known_layout_is_an_error(tmp_path: Path) -> None:
    assert error_of(tmp_path / "nothing").path == tmp_path / "nothing"
    (tmp_path / "cars_annos.mat").touch()
    (tmp_path / "one class").mkdir()
    assert error_of(tmp_path).path == tmp_path


@pytest.mark.parametrize(
    ("layout", "lost"),
    [
        ("A", "cars_annos.mat"),
        ("B", "devkit/cars_train_annos.mat"),
        ("B", "devkit/cars_test_annos_withlabels.mat"),
        ("B", "devkit/cars_meta.mat"),
    ],
)
def test_a_missing_list_is_named(layout: str, lost: str, tmp_path: Path) -> None:
    LAYOUTS[layout](tmp_path, SMALL)
    (tmp_path / lost).unlink()
    assert Path(lost).name in error_of(tmp_path).problem


def test_missing_class_folders_are_counted(tmp_path: Path) -> None:
    write_cars_by_class(tmp_path, SMALL)
    for part in ("train", "test"):
        (tmp_path / part / CAR_NAMES[5]).rename(tmp_path / part / ".hidden")
    assert "195" in error_of(tmp_path).problem


def row(**fields: object) -> dict[str, object]:
    return {"relative_im_path": "car_ims/1.jpg", "class": np.uint8(1), **fields}


@pytest.mark.parametrize(
    ("write", "found"),
    [
        (lambda path: path.write_bytes(b"not MATLAB at all"), "damaged"),
        (lambda path: path.write_bytes(b""), "damaged"),
        (lambda path: path.write_bytes(path.read_bytes()[:9000]), "damaged"),
        (lambda path: write_mat(path, names=CAR_NAMES), "'annotations'"),
        (lambda path: write_mat(path, [row()]), "'class_names'"),
        (lambda path: write_mat(path, [row()], CAR_NAMES[1:]), "195"),
        (lambda path: write_mat(path, [{"fname": "1.jpg", "class": 1}], CAR_NAMES), "'relative_im_path'"),
        (lambda path: write_mat(path, [{"relative_im_path": "1.jpg"}], CAR_NAMES), "'class'"),
        (lambda path: write_mat(path, [row(), row(**{"class": np.uint8(197)})], CAR_NAMES), "annotation 2"),
        (lambda path: write_mat(path, [row(**{"class": np.uint8(0)})], CAR_NAMES), "annotation 1"),
        (lambda path: write_mat(path, [row(**{"class": "Eagle"})], CAR_NAMES), "'Eagle'"),
    ],
)
def test_a_damaged_list_is_named(write: Callable[[Path], object], found: str, tmp_path: Path) -> None:
    write_cars_in_one_folder(tmp_path, SMALL)
    write(tmp_path / "cars_annos.mat")
    error = error_of(tmp_path)
    assert error.path == tmp_path / "cars_annos.mat" and found in error.problem


def test_the_data_card_shows_what_its_command_prints(
    roots: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "cars").symlink_to(roots["B"])
    monkeypatch.chdir(tmp_path)
    [(printed, shown)] = run_card(CARD)
    assert printed == shown
