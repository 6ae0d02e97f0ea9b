"""Cars-196 (Stanford Cars): one class for each make, model and year."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd

from orthoproxy.core.boxes import add_boxes
from orthoproxy.core.errors import InputError
from orthoproxy.core.files import paths_inside
from orthoproxy.core.safe_parsing import parse_json
from orthoproxy.data.sources.folder import folder_table, sub_folders
from orthoproxy.data.sources.text_lists import AS_PUBLISHED, find_file
from orthoproxy.data.table import make_table, source_errors

CLASSES = 196
TRAIN_CLASSES = 98  # the first ones
EDGES = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2")
WRAPPERS = ("stanford_cars", "car_data", "car_data/car_data")  # folders that some copies put everything in
SLASH_NAME = "Ram C/V Cargo Van Minivan 2012"  # no folder can have this name
SLASH_FOLDER = re.compile(r"Ram C(.?V Cargo Van Minivan 2012)?")  # C-V, C_V, CV; or C, with the rest a folder in it

# SciPy's reader can end in a segmentation fault on a damaged file, so a process of its own prints the lists as JSON
READ_MAT = """
import json, sys
import numpy as np
from scipy.io import loadmat

def plain(value):
    value = value.item() if getattr(value, "size", 0) == 1 else value
    return int(value) if isinstance(value, (int, float)) and value == int(value) else str(value)

path, variable = sys.argv[1:]
rows = np.atleast_1d(loadmat(path, squeeze_me=True, variable_names=[variable])[variable])
fields = rows.dtype.names
print(json.dumps({name: [plain(x) for x in rows[name]] for name in fields} if fields else [plain(x) for x in rows]))
"""


def cars_table(root: Path, boxes: bool = False) -> pd.DataFrame:
    """Read Cars-196 in the retrieval split: classes 1 to 98 for training, 99 to 196 for test.

    Copies come in three layouts, told apart by their folders: A, ``car_ims`` and its list; B, ``cars_train`` and
    ``cars_test`` and their lists; C, a folder for each class. In A and B, whether the images exist is not checked.
    Source, published counts and the layouts: ``docs/data/cars.md``.

    Parameters
    ----------
    root
        The folder with one of the layouts, or the one that contains ``stanford_cars`` or ``car_data``.
    boxes
        Cut the images to the cars' boxes, which the lists of A and B have.

    Returns
    -------
    pandas.DataFrame
        See `make_table`; in the order of the lists or by path. A label is the name of the class, such as
        ``AM General Hummer SUV 2000``.

    Raises
    ------
    InputError
        If there is none of the layouts, or a list is missing, damaged or leads out of the folder.
    """
    if not root.is_dir():
        raise InputError("no such folder", field="root", path=root)
    root = root.absolute()
    for folder in (root, *(root / wrapper for wrapper in WRAPPERS)):
        if (folder / "car_ims").is_dir():
            path = _find_list(folder, "cars_annos.mat")
            images = _read_annotations(path, "relative_im_path", folder, boxes)
            return _make_table(images, _read_names(path), folder)
        if (folder / "cars_train").is_dir():
            images = []
            for part, name in (("cars_train", "cars_train_annos"), ("cars_test", "cars_test_annos_withlabels")):
                path = _find_list(folder, f"{name}.mat")
                images += _read_annotations(path, "fname", _image_folder(folder / part), boxes)
            return _make_table(images, _read_names(_find_list(folder, "cars_meta.mat")), folder)
        if (folder / "train").is_dir() and not boxes:
            return _read_class_folders(folder / "train", folder / "test")
        if len(sub_folders(folder)) == CLASSES and not boxes:
            return _read_class_folders(folder)
    by_class = "" if boxes else f", train and test, or {CLASSES} class folders"
    expected = f"car_ims and cars_annos.mat, cars_train and its lists{by_class}"
    raise InputError(f"no known layout of Cars-196{' with boxes' * boxes}", field="root", path=root, expected=expected)


def _make_table(images: list[tuple[str, int]], names: list[str], folder: Path) -> pd.DataFrame:
    """Make the table of images with class numbers, which begin with 1."""
    paths, numbers = zip(*images, strict=True) if images else ((), ())
    split = ["train" if number <= TRAIN_CLASSES else "test" for number in numbers]
    with source_errors("root", folder):
        return make_table(paths, [names[number - 1] for number in numbers], split=split)


def _find_list(folder: Path, name: str) -> Path:
    return find_file(folder, (f"devkit/{name}", name), "get it from where the images are from")


def _image_folder(folder: Path) -> Path:
    nested = folder / folder.name  # in some copies
    return nested if nested.is_dir() else folder


def _read_mat(path: Path, variable: str) -> Any:
    command = [sys.executable, "-I", "-c", READ_MAT, str(path), variable]
    try:
        return parse_json(subprocess.run(command, capture_output=True, timeout=300, check=True).stdout)
    except (subprocess.SubprocessError, ValueError) as error:
        problem = f"damaged MATLAB file, or no variable {variable!r}"
        raise InputError(problem, field="root", path=path, hint=AS_PUBLISHED) from error


def _read_annotations(path: Path, path_field: str, images: Path, boxes: bool) -> list[tuple[str, int]]:
    """Return path and class number of each image."""
    rows = _read_mat(path, "annotations")
    missing = {path_field, "class", *(EDGES if boxes else ())} - set(rows if isinstance(rows, dict) else ())
    if missing:
        raise InputError(f"no field {min(missing)!r}", field="root", path=path, hint=AS_PUBLISHED)
    for row, number in enumerate(rows["class"], start=1):
        if not isinstance(number, int) or not 1 <= number <= CLASSES:
            problem, expected = f"annotation {row}: class {number!r}", f"1 to {CLASSES}"
            raise InputError(problem, field="root", path=path, expected=expected, hint=AS_PUBLISHED)
    with source_errors("root", path):
        files = paths_inside(images, map(str, rows[path_field]), path)
    if boxes:
        # the first and the last pixels inside, counted from 1 as in MATLAB
        left, top, right, bottom = (pd.to_numeric(pd.Series(rows[name]), errors="coerce") for name in EDGES)
        edges = zip(left - 1, top - 1, right, bottom, strict=True)
        files = add_boxes("annotation", enumerate(files, start=1), edges, "root", path)
    return list(zip(files, rows["class"], strict=True))


def _read_names(path: Path) -> list[str]:
    """Return the names of the classes, in the order of their numbers."""
    names = [str(label) for label in _read_mat(path, "class_names")]
    if len(names) != CLASSES:
        expected = str(CLASSES)
        raise InputError(f"{len(names)} class names", field="root", path=path, expected=expected, hint=AS_PUBLISHED)
    return names


def _read_class_folders(*folders: Path) -> pd.DataFrame:
    # the official order differs within a make only, and class 98, the one Eagle, comes before FIAT: the same halves
    names = sorted(set().union(*(sub_folders(folder) for folder in folders)))
    if len(names) != CLASSES:
        problem = f"{len(names)} class folders"
        hint = "classes are numbered by name, so none may be missing"
        raise InputError(problem, field="root", path=folders[0].parent, expected=str(CLASSES), hint=hint)
    images = pd.concat([folder_table(folder) for folder in folders])
    numbers = {name: number for number, name in enumerate(names, start=1)}
    labels = [SLASH_NAME if SLASH_FOLDER.fullmatch(name) else name for name in names]
    rows = [(path, numbers[name]) for path, name in zip(images["path"], images["label"], strict=True)]
    return _make_table(rows, labels, folders[0].parent)
