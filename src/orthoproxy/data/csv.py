"""Images listed in a CSV file."""

from __future__ import annotations

import csv
from pathlib import Path

import pandas as pd

from orthoproxy.data.table import make_table
from orthoproxy.errors import InputError


def csv_table(path: Path, root: Path | None = None) -> pd.DataFrame:
    """Read a list of images: columns ``path,label`` and, if wanted, ``split,role,group``.

    Parameters
    ----------
    path
        The CSV file, UTF-8, with a header line. Other columns are ignored.
    root
        The folder that relative image paths start from; None for the CSV file's own.

    Returns
    -------
    pandas.DataFrame
        As `make_table`, in the file's order.

    Raises
    ------
    InputError
        If the file is missing or unreadable, or lacks a column or a value.

    Examples
    --------
    >>> csv_table(Path("nowhere.csv"))
    Traceback (most recent call last):
    ...
    orthoproxy.errors.InputError: data.path: no file nowhere.csv; give the CSV file that lists the images
    """
    if not path.is_file():
        raise InputError(f"data.path: no file {path}; give the CSV file that lists the images")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = [row for row in csv.reader(file, skipinitialspace=True, strict=True) if row]
    except UnicodeDecodeError as error:
        raise InputError(f"data.path: cannot read {path} as UTF-8 text: {error}; save it as UTF-8") from error
    except csv.Error as error:
        raise InputError(f"data.path: cannot read {path} as CSV: {error}; check its quotes") from error
    names = [name.strip() for name in rows[0]] if rows else []
    missing = [name for name in ("path", "label") if name not in names]
    if missing:
        raise InputError(
            f"data.path: {path} has no column {missing[0]!r}, only {', '.join(names) or 'nothing'}; "
            "its first line must name path and label (and may name split, role, group)"
        )
    for number, row in enumerate(rows[1:], start=1):
        if len(row) != len(names):
            raise InputError(
                f"data.path: row {number} of {path} has {len(row)} fields, the first line {len(names)}; "
                "put fields that hold a comma in quotes"
            )
    columns = {name: [row[place].strip() for row in rows[1:]] for place, name in enumerate(names)}
    folder = (root or path.parent).absolute()
    optional = {name: columns[name] for name in ("split", "group") if name in columns}
    if "role" in columns:
        optional["role"] = [role or "both" for role in columns["role"]]
    paths = [str(folder / name) if name else "" for name in columns["path"]]
    return make_table(paths, columns["label"], **optional)
