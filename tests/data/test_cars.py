"""Cars-196: one table from every layout, the order of the classes, and damaged copies."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from errors import error_of
from stand_ins import (
    BOX,
    CAR_NAMES,
    write_cars_by_class,
    write_cars_in_one_folder,
    write_cars_in_two_folders,
    write_mat,
)
from torchvision.datasets import StanfordCars

from orthoproxy.data import cars_table

LAYOUTS = {"A": write_cars_in_one_folder, "B": write_cars_in_two_folders, "C": write_cars_by_class}
SMALL = (98 * 2, 98 * 2)
RAM = "Ram C/V Cargo Van Minivan 2012"


def test_classes_1_to_98_are_for_training_in_every_layout(tmp_path: Path) -> None:
    for layout, write in LAYOUTS.items():
        write(tmp_path / layout, SMALL)
    tables = {layout: cars_table(tmp_path / layout) for layout in LAYOUTS}
    for table in tables.values():
        assert set(table["label"][table["split"] == "train"]) == set(CAR_NAMES[:98])
        assert set(table["label"][table["split"] == "test"]) == set(CAR_NAMES[98:])
        assert set(table["role"]) == {"both"} and set(table["group"]) == {""} and table["path"].is_unique
        assert Counter(table["label"]) == Counter(tables["A"]["label"])
    assert tables["A"]["path"][0] == str(tmp_path / "A" / "car_ims" / "000001.jpg")
    for path, label in zip(tables["C"]["path"], tables["C"]["label"], strict=True):
        assert Path(path).parent.name == label.replace("/", "-") and not Path(path).name.startswith("._")


def test_class_folders_may_lie_in_the_root_and_the_name_with_a_slash_is_the_official_one(tmp_path: Path) -> None:
    write_cars_by_class(tmp_path, SMALL, parts=("",))
    (tmp_path / ".thumbnails").mkdir()
    (tmp_path / "README.txt").touch()
    folder = tmp_path / "Ram C-V Cargo Van Minivan 2012"
    for name in ("Ram C_V Cargo Van Minivan 2012", "Ram CV Cargo Van Minivan 2012", "Ram C V Cargo Van Minivan 2012"):
        folder = folder.rename(tmp_path / name)
        assert Counter(cars_table(tmp_path)["label"])[RAM] == 2
    (tmp_path / "Ram C").mkdir()  # the slash may have become two folders
    folder.rename(tmp_path / "Ram C" / "V Cargo Van Minivan 2012")
    assert Counter(cars_table(tmp_path)["label"])[RAM] == 2


def test_lists_and_images_may_lie_a_folder_higher_or_deeper(tmp_path: Path) -> None:
    write_cars_in_two_folders(tmp_path, SMALL, pictures={1})
    for path in (tmp_path / "devkit").iterdir():
        path.rename(tmp_path / path.name)
    for name in ("cars_train", "cars_test"):
        (tmp_path / name).rename(tmp_path / "moved")
        (tmp_path / name).mkdir()
        (tmp_path / "moved").rename(tmp_path / name / name)
    table = cars_table(tmp_path)
    of_class_1 = table["path"][table["label"] == CAR_NAMES[0]]
    assert len(of_class_1) == 2 and all(Path(path).is_file() for path in of_class_1)


def test_torchvision_reads_the_same_from_the_stand_in(tmp_path: Path) -> None:
    """An independent reader, written for the original files."""
    write_cars_in_two_folders(tmp_path / "stanford_cars", SMALL, test_list=".")
    expected = []
    for split in ("train", "test"):
        dataset = StanfordCars(tmp_path, split)
        expected += [(path, dataset.classes[number]) for path, number in dataset._samples]
    table = cars_table(tmp_path)
    assert list(zip(table["path"], table["label"], strict=True)) == expected


def annotation(number: object) -> dict[str, object]:
    return {"relative_im_path": "car_ims/1.jpg", **BOX, "class": number}


def test_an_incomplete_copy_is_an_error(tmp_path: Path) -> None:
    assert error_of(cars_table, tmp_path / "nothing").path == tmp_path / "nothing"
    (tmp_path / "cars_annos.mat").touch()
    (tmp_path / "one class").mkdir()
    assert error_of(cars_table, tmp_path).path == tmp_path
    write_cars_by_class(tmp_path / "C", SMALL)
    for part in ("train", "test"):
        (tmp_path / "C" / part / CAR_NAMES[5]).rename(tmp_path / "C" / part / ".hidden")
    assert "195" in error_of(cars_table, tmp_path / "C").problem
    write_cars_in_two_folders(tmp_path / "B", SMALL)
    for lost in ("cars_train_annos.mat", "cars_test_annos_withlabels.mat", "cars_meta.mat"):
        (tmp_path / "B" / "devkit" / lost).rename(tmp_path / lost)
        assert lost in error_of(cars_table, tmp_path / "B").problem
        (tmp_path / lost).rename(tmp_path / "B" / "devkit" / lost)


@pytest.mark.parametrize(("write", "found"), [
    (lambda path: path.write_bytes(path.read_bytes()[:9000]), "damaged"),
    (lambda path: write_mat(path, names=CAR_NAMES), "'annotations'"),
    (lambda path: write_mat(path, [annotation(np.uint8(1))]), "'class_names'"),
    (lambda path: write_mat(path, [annotation(np.uint8(1))], CAR_NAMES[1:]), "195"),
    (lambda path: write_mat(path, [{"fname": "1.jpg", "class": 1}], CAR_NAMES), "'relative_im_path'"),
    (lambda path: write_mat(path, [annotation(np.uint8(n)) for n in (1, 197)], CAR_NAMES), "annotation 2"),
])  # fmt: skip
def test_a_damaged_list_is_named(write: Callable[[Path], object], found: str, tmp_path: Path) -> None:
    write_cars_in_one_folder(tmp_path, SMALL)
    write(tmp_path / "cars_annos.mat")
    error = error_of(cars_table, tmp_path)
    assert (error.field, error.path) == ("root", tmp_path / "cars_annos.mat") and found in error.problem
