"""Images listed in a CSV file."""

from __future__ import annotations

from collections.abc import Sequence
from csv import Error as CsvError
from csv import reader
from pathlib import Path

import numpy as np
import pandas as pd

from orthoproxy.core.boxes import add_boxes
from orthoproxy.core.errors import InputError
from orthoproxy.core.files import path_inside
from orthoproxy.data.table import make_table, source_errors

EDGES = ("left", "top", "right", "bottom")


def csv_table(csv: Path, root: Path | None = None, allow_paths_outside_root: bool = False) -> pd.DataFrame:
    """Read a list of images with the columns ``path,label`` and optionally ``split,role,group,category``.

    The columns ``left,top,right,bottom`` are an object's box in pixels of the upright picture, or empty for the whole
    picture. The box becomes a part of the path: ``a.png#xywh=`` and its left, top, width and height.

    Parameters
    ----------
    csv
        UTF-8, with a header line. Other columns are ignored.
    root
        The folder that contains the images, and that relative paths start from; None for the folder of the CSV file.
    allow_paths_outside_root
        Accept paths outside of that folder. A list from somebody else could name any file of this machine.

    Returns
    -------
    pandas.DataFrame
        See `make_table`; in the order of the file.

    Raises
    ------
    InputError
        If the file is missing or unreadable, lacks a column or a value, or lists an image outside of the folder.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "list.csv"
    >>> _ = path.write_text("path,label\\nblue/1.png,blue\\n")
    >>> csv_table(path, root=Path("/images"))[["path", "label"]]
                     path label
    0  /images/blue/1.png  blue
    """
    rows = read_rows(csv, required=("path", "label"), field="csv")
    folder = (root or csv.parent).absolute()
    optional = {name: rows[name].tolist() for name in ("split", "group", "category") if name in rows}
    if "role" in rows:
        optional["role"] = [role or "both" for role in rows["role"]]
    unlabeled = (rows["label"] == "") & (np.array(optional.get("role", "both")) != "gallery")
    if unlabeled.any():
        expected = "a label, except for distractors, whose role is gallery"
        raise InputError(f"line {unlabeled.idxmax()}: empty label", field="csv", path=csv, expected=expected)
    paths = []
    for line, name in rows["path"].items():
        path = str(folder / name) if allow_paths_outside_root else path_inside(folder, name)
        if path is None:
            hint = "set root to the folder of all images, or allow_paths_outside_root for a list that you trust"
            raise InputError(f"line {line} lists {name!r}, outside of {folder}", field="csv", path=csv, hint=hint)
        paths.append(path)
    with source_errors("csv", csv):
        return make_table(paths, rows["label"].tolist(), **optional)


def read_rows(path: Path, required: Sequence[str], field: str) -> pd.DataFrame:
    """Read a CSV file as stripped text, indexed by line, with boxes (`EDGES`) in the paths; errors name `field`."""
    if not path.is_file():
        raise InputError("no such file", field=field, path=path)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows, lines, line = reader(file, skipinitialspace=True, strict=True), {}, 1
            for row in rows:
                if row:
                    lines[line] = [value.strip() for value in row]
                line = rows.line_num + 1
    except UnicodeDecodeError as error:
        raise InputError(f"not UTF-8: {error}", field=field, path=path) from error
    except CsvError as error:
        raise InputError(f"not CSV: {error}", field=field, path=path, hint="check its quotes") from error
    names = lines.pop(min(lines)) if lines else []
    named = [name for name in names if name]
    if twice := sorted({name for name in named if named.count(name) > 1}):
        raise InputError(f"two columns are called {twice[0]!r}", field=field, path=path)
    if missing := [name for name in required if name not in names]:
        expected = f"a header line with {' and '.join(required)}"
        found = f"no column {missing[0]!r} but {', '.join(names) or 'nothing'}"
        raise InputError(found, field=field, path=path, expected=expected)
    for line, row in lines.items():
        if len(row) != len(names):
            hint = "put fields that contain a comma in quotes"
            problem = f"line {line} has {len(row)} fields, the header {len(names)}"
            raise InputError(problem, field=field, path=path, hint=hint)
    table = pd.DataFrame(list(lines.values()), index=list(lines), columns=names, dtype=object)
    if (empty := table["path"] == "").any():
        raise InputError(f"line {empty.idxmax()}: empty path", field=field, path=path)
    if edges := [name for name in EDGES if name in names]:
        table["path"] = add_boxes("line", table["path"].items(), table[edges].to_numpy().tolist(), field, path)
    return table
