"""Cars-196 (Stanford Cars): a class a make, model and year."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd

from orthoproxy.core.errors import InputError
from orthoproxy.core.files import paths_inside
from orthoproxy.core.safe_parsing import parse_json
from orthoproxy.data.sources.folder import folder_table
from orthoproxy.data.sources.text_lists import find_file
from orthoproxy.data.table import make_table

CLASSES = 196
READ_SECONDS = 300.0  # of a list; the published ones take one or two
TRAIN_CLASSES = 98  # the first ones; the others are for the test
INSIDE = ("stanford_cars", "car_data", "car_data/car_data")  # folders that some copies wrap all others in
SLASHED = "Ram C/V Cargo Van Minivan 2012"  # no folder can have this name
SLASHED_FOLDER = re.compile(r"Ram C(.?V Cargo Van Minivan 2012)?")  # C-V, C_V, CV; or C, with the rest a folder in it


def cars_table(root: Path) -> pd.DataFrame:
    """Read Cars-196 in the split of retrieval: classes 1 to 98 to train on, 99 to 196 to judge on.

    Since the owner's page is gone, copies come in three layouts, told apart by their folders:

    A. ``car_ims/000001.jpg`` and the list ``cars_annos.mat``;
    B. ``cars_train/00001.jpg``, ``cars_test/00001.jpg`` and the lists ``cars_train_annos.mat``,
       ``cars_test_annos_withlabels.mat`` and ``cars_meta.mat``;
    C. a folder for each class, 196 in all, directly or in both ``train`` and ``test``. Classes are numbered by name, in
       the order of character codes. The official order is another within a make, but the same from make to make, and
       class 98, the one Eagle, is followed by FIAT: the two halves are the same.

    Lists may lie in ``devkit`` or beside it. What they, or folders, call train and test is the split for
    classification, with every class on both sides; it is not used. In A and B, images are not looked for.

    Parameters
    ----------
    root
        The folder with one of the layouts, or the one that a copy's ``stanford_cars`` or ``car_data`` lies in.

    Returns
    -------
    pandas.DataFrame
        As `make_table`, in the order of the lists or by path; a label is the name of the class, such as
        ``AM General Hummer SUV 2000``. The published data are 8,054 images to train on and 8,131 to judge on.

    Raises
    ------
    InputError
        If there is none of the layouts, or a list is missing or damaged or leads out of the folder.

    References
    ----------
    J. Krause, M. Stark, J. Deng, L. Fei-Fei: 3D Object Representations for Fine-Grained Categorization, 4th IEEE
    Workshop on 3D Representation and Recognition, ICCV 2013. The split: H. O. Song, Y. Xiang, S. Jegelka, S. Savarese:
    Deep Metric Learning via Lifted Structured Feature Embedding, CVPR 2016.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as root:
    ...     for number in range(1, 197):
    ...         Path(root, f"Make {number:03d}").mkdir()
    ...     for place in ("Make 098/1.jpg", "Make 099/1.jpg"):
    ...         Path(root, place).touch()
    ...     cars_table(Path(root))[["label", "split", "role"]]
          label  split  role
    0  Make 098  train  both
    1  Make 099   test  both
    """
    if not root.is_dir():
        raise InputError(f"data.root: no folder {root}")
    root = root.absolute()
    for folder in (root, *(root / place for place in INSIDE)):
        if (folder / "car_ims").is_dir():
            images = _read_annotations(folder, "cars_annos.mat", "relative_im_path", folder)
            return _table(images, _read_names(folder, "cars_annos.mat"))
        if (folder / "cars_train").is_dir():
            train = _read_annotations(folder, "cars_train_annos.mat", "fname", _images(folder, "cars_train"))
            test = _read_annotations(folder, "cars_test_annos_withlabels.mat", "fname", _images(folder, "cars_test"))
            return _table(train + test, _read_names(folder, "cars_meta.mat"))
        if (folder / "train").is_dir():
            return _read_class_folders(folder / "train", folder / "test")
        if len(_sub_folders(folder)) == CLASSES:
            return _read_class_folders(folder)
    raise InputError(
        f"data.root: {root} has no folder car_ims (listed in cars_annos.mat), no cars_train (in cars_train_annos.mat), "
        f"no train and test with a folder for each class, and not {CLASSES} such folders itself; "
        "give a folder with one of these layouts"
    )


def _table(images: list[tuple[str, int]], names: list[str]) -> pd.DataFrame:
    """Make the table of images with a class number, from 1."""
    paths, numbers = zip(*images, strict=True) if images else ((), ())
    split = ["train" if number <= TRAIN_CLASSES else "test" for number in numbers]
    return make_table(paths, [names[number - 1] for number in numbers], split=split)


def _find(folder: Path, name: str) -> Path:
    return find_file(folder, (f"devkit/{name}", name), "get it from where the images are from")


def _images(folder: Path, name: str) -> Path:
    """Return where images lie; some copies have the folder twice, one in the other."""
    return folder / name / name if (folder / name / name).is_dir() else folder / name


def _read_mat(path: Path, variable: str) -> Any:
    """Read a variable in a process of its own: SciPy can crash on a damaged file, and would take this one along."""
    command = [sys.executable, "-I", str(Path(__file__).with_name("mat_reader.py")), str(path), variable]
    try:
        done = subprocess.run(command, capture_output=True, timeout=READ_SECONDS)
        answer = parse_json(done.stdout)
    except (subprocess.TimeoutExpired, ValueError):
        answer = {"error": "reading it failed or took too long"}
    if "error" in answer:
        raise InputError(f"data.root: cannot read {path} as a MATLAB file: {answer['error']}; get it again")
    if answer["rows"] is None:
        raise InputError(f"data.root: {path} has no variable {variable!r}; take the file as published")
    return answer["rows"]


def _read_annotations(folder: Path, name: str, field: str, images: Path) -> list[tuple[str, int]]:
    """Read path and class number of each image."""
    path = _find(folder, name)
    rows = _read_mat(path, "annotations")
    missing = {field, "class"} - set(rows if isinstance(rows, dict) else ())
    if missing:
        raise InputError(f"data.root: {path} has no field {min(missing)!r}; take the file as published")
    numbers = rows["class"]
    if odd := [number for number in numbers if not isinstance(number, int)]:
        raise InputError(f"data.root: {path}: a class is {odd[0]!r}, no number; take the file as published")
    for row, number in enumerate(numbers, start=1):
        if not 1 <= number <= CLASSES:
            raise InputError(f"data.root: annotation {row} of {path}: class is {number}; it must be 1 to {CLASSES}")
    return list(zip(paths_inside(images, map(str, rows[field]), path), numbers, strict=True))


def _read_names(folder: Path, name: str) -> list[str]:
    """Read the names of the classes, in the order of their numbers."""
    path = _find(folder, name)
    names = [str(label) for label in _read_mat(path, "class_names")]
    if len(names) != CLASSES:
        raise InputError(f"data.root: {path} names {len(names)} classes, not {CLASSES}; take the file as published")
    return names


def _sub_folders(folder: Path) -> set[str]:
    if not folder.is_dir():
        return set()
    return {path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")}


def _read_class_folders(*folders: Path) -> pd.DataFrame:
    names = sorted(set().union(*(_sub_folders(folder) for folder in folders)))
    if len(names) != CLASSES:
        raise InputError(
            f"data.root: {' and '.join(map(str, folders))} have {len(names)} class folders together, not {CLASSES}; "
            "the classes are numbered by name, so none may be missing"
        )
    images = pd.concat([folder_table(folder) for folder in folders])
    numbers = {name: number for number, name in enumerate(names, start=1)}
    labels = [SLASHED if SLASHED_FOLDER.fullmatch(name) else name for name in names]
    return _table([(path, numbers[name]) for path, name in zip(images["path"], images["label"], strict=True)], labels)
