"""A collection to embed or index: images of one folder, with a label and a group where these are known."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from orthoproxy.core.errors import InputError
from orthoproxy.data.sources.csv import read_columns
from orthoproxy.data.sources.folder import labelled_files


@dataclass(frozen=True)
class Collection:
    """Images of one folder.

    Parameters
    ----------
    root
        The folder, absolute.
    images
        One row an image: `path` from the folder on, with slashes; `label` and `group`, empty where they are not known.

    Examples
    --------
    >>> images = pd.DataFrame({"path": ["blue/1.png"], "label": ["blue"], "group": [""]})
    >>> len(Collection(Path("/pictures"), images))
    1
    """

    root: Path
    images: pd.DataFrame

    def __len__(self) -> int:
        return len(self.images)


def read_collection(place: Path, root: Path | None = None) -> Collection:
    """Find the images of a folder, at any depth, or of a CSV file.

    Parameters
    ----------
    place
        A folder: the label of an image is the sub-folder it lies in, directly or deeper; images that lie in no
        sub-folder have none. Or a CSV file with a column ``path``, and maybe ``label`` and ``group``.
    root
        The folder that holds all images; None for the folder itself, or for the CSV file's.

    Returns
    -------
    Collection
        Sorted by path; a CSV file's in its order.

    Raises
    ------
    InputError
        If there is no image, a file cannot be read as a list, or an image does not lie in `root`.

    Examples
    --------
    >>> read_collection(Path("nowhere"))
    Traceback (most recent call last):
    ...
    orthoproxy.core.errors.InputError: nowhere: no such folder or CSV file; give one with the images
    """
    if place.is_dir():
        files = labelled_files(place)
        if not files:
            raise InputError(f"{place}: no image in this folder or below it; give another one")
        table = pd.DataFrame(
            [(str(path.absolute()), label) for path, label in files], columns=["path", "label"], dtype=object
        )
        return make_collection(table, root or place)
    if not place.is_file():
        raise InputError(f"{place}: no such folder or CSV file; give one with the images")
    columns = read_columns(place, needed=("path",), field="IMAGES")
    folder = (root or place.parent).absolute()
    if "" in columns["path"]:
        raise InputError(f"{place}: path: empty in row {columns['path'].index('') + 1}; fill it in")
    if not columns["path"]:
        raise InputError(f"{place}: lists no image; give another CSV file")
    columns["path"] = [str(folder / path) for path in columns["path"]]
    return make_collection(pd.DataFrame(columns), folder)


def make_collection(table: pd.DataFrame, root: Path | None = None) -> Collection:
    """Turn a table of images into a collection.

    Parameters
    ----------
    table
        With a column `path`, and maybe `label` and `group`, such as from `make_table`. Other columns are left out.
    root
        The folder that holds all images; None for the deepest one that does.

    Returns
    -------
    Collection
        In the order of the table; an image listed twice is kept once.

    Raises
    ------
    InputError
        If an image does not lie in `root`, or is listed with two labels or groups.

    Examples
    --------
    >>> table = pd.DataFrame({"path": ["/pictures/blue/1.png", "/pictures/red/1.png"], "label": ["blue", "red"]})
    >>> collection = make_collection(table)
    >>> str(collection.root), collection.images["path"].tolist()
    ('/pictures', ['blue/1.png', 'red/1.png'])
    """
    paths = [os.path.abspath(path) for path in table["path"]]  # noqa: PTH100 -- ten times as fast
    folder = Path(os.path.normpath(root.absolute()) if root else _common_folder(paths))
    start = str(folder).rstrip(os.sep) + os.sep
    outside = next((path for path in paths if not path.startswith(start)), None)
    if outside is not None:
        raise InputError(f"{outside}: not in the folder {folder}; give one that holds all images with --data.root")
    inner = [path.removeprefix(start).replace(os.sep, "/") for path in paths]
    known = {name: table[name].fillna("").map(str).tolist() if name in table else "" for name in ("label", "group")}
    # objects, since the names of files need not be text that pandas would take
    images = pd.DataFrame({"path": inner, **known}, dtype=object).drop_duplicates(ignore_index=True)
    twice = images["path"][images["path"].duplicated()]
    if len(twice):
        raise InputError(f"{folder / twice.iloc[0]}: listed twice, with different labels or groups; keep one")
    return Collection(folder, images)


def _common_folder(paths: list[str]) -> str:
    return os.path.commonpath({path.rpartition(os.sep)[0] or os.sep for path in paths})
