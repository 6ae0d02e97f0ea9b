"""Images listed in a CSV file."""

from __future__ import annotations

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
    orthoproxy.errors.InputError: data.path: no file nowhere.csv
    """
    if not path.is_file():
        raise InputError(f"data.path: no file {path}")
    try:
        listed = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise InputError(f"data.path: cannot read {path} as CSV: {error}") from error
    listed.columns = listed.columns.str.strip()
    missing = [name for name in ("path", "label") if name not in listed]
    if missing:
        raise InputError(
            f"data.path: {path} has no column {missing[0]!r}, only {', '.join(listed.columns)}; "
            "its first line must name path and label (and may name split, role, group)"
        )
    folder = (root or path.parent).absolute()
    optional = {name: listed[name].tolist() for name in ("split", "group") if name in listed}
    if "role" in listed:
        optional["role"] = listed["role"].replace("", "both").tolist()
    return make_table([str(folder / name) for name in listed["path"]], listed["label"].tolist(), **optional)
