"""Images listed in a CSV file."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from orthoproxy.core.errors import InputError
from orthoproxy.core.files import path_inside
from orthoproxy.data.table import make_table


def csv_table(path: Path, root: Path | None = None, outside_root: bool = False) -> pd.DataFrame:
    """Read a list of images: columns ``path,label`` and, if wanted, ``split,role,group``.

    Parameters
    ----------
    path
        The CSV file, UTF-8, with a header line. Other columns are ignored.
    root
        The folder that holds the images, and that relative paths start from; None for the CSV file's own.
    outside_root
        Let paths lead out of that folder: for lists of one's own, which may name any file of this machine.

    Returns
    -------
    pandas.DataFrame
        As `make_table`, in the file's order.

    Raises
    ------
    InputError
        If the file is missing or unreadable, lacks a column or a value, or lists an image that is not in the folder.

    Examples
    --------
    >>> csv_table(Path("nowhere.csv"))
    Traceback (most recent call last):
    ...
    orthoproxy.core.errors.InputError: data.path: no file nowhere.csv; give the CSV file that lists the images
    """
    columns = read_columns(path, needed=("path", "label"))
    folder = (root or path.parent).absolute()
    optional = {name: columns[name] for name in ("split", "group") if name in columns}
    if "role" in columns:
        optional["role"] = [role or "both" for role in columns["role"]]
    paths = _places(columns["path"], folder, path, outside_root)
    return make_table(paths, columns["label"], **optional)


def _places(names: Sequence[str], folder: Path, path: Path, outside_root: bool) -> list[str]:
    """Where the images lie; an empty name stays empty, for `make_table` to name its row."""
    places = []
    for row, name in enumerate(names, start=1):
        place = str(folder / name) if outside_root else path_inside(folder, name)
        if place is None:
            raise InputError(
                f"data.path: row {row} of {path} lists {name!r}, which is not in {folder}\n"
                "give the folder that holds all images as data.root, or allow any place with data.outside_root true"
            )
        places.append(place if name else "")
    return places


def read_columns(path: Path, needed: Sequence[str], field: str = "data.path") -> dict[str, list[str]]:
    """Read the columns of a CSV file as text.

    Parameters
    ----------
    path
        The CSV file, UTF-8, with a header line.
    needed
        Names of columns that it must have.
    field
        What gave the file, for errors.

    Returns
    -------
    dict
        The values of each column, by its name, without white space around them.

    Raises
    ------
    InputError
        If the file is missing or unreadable, has a column twice, or lacks a column or a value.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "list.csv"
    >>> _ = path.write_text("path\\nblue/1.png\\n")
    >>> read_columns(path, needed=["path"])
    {'path': ['blue/1.png']}
    """
    if not path.is_file():
        raise InputError(f"{field}: no file {path}; give the CSV file that lists the images")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = [row for row in csv.reader(file, skipinitialspace=True, strict=True) if row]
    except UnicodeDecodeError as error:
        raise InputError(f"{field}: cannot read {path} as UTF-8 text: {error}; save it as UTF-8") from error
    except csv.Error as error:
        raise InputError(f"{field}: cannot read {path} as CSV: {error}; check its quotes") from error
    names = [name.strip() for name in rows[0]] if rows else []
    twice = next((name for place, name in enumerate(names) if name and name in names[:place]), None)
    if twice is not None:
        raise InputError(f"{field}: {path} has two columns {twice!r}; give one of them another name")
    missing = [name for name in needed if name not in names]
    if missing:
        others = [name for name in ("label", "split", "role", "group") if name not in needed]
        raise InputError(
            f"{field}: {path} has no column {missing[0]!r}, only {', '.join(names) or 'nothing'}; "
            f"its first line must name {' and '.join(needed)} (and may name {', '.join(others)})"
        )
    for number, row in enumerate(rows[1:], start=1):
        if len(row) != len(names):
            raise InputError(
                f"{field}: row {number} of {path} has {len(row)} fields, the first line {len(names)}; "
                "put fields that hold a comma in quotes"
            )
    return {name: [row[place].strip() for row in rows[1:]] for place, name in enumerate(names)}
