"""Lists of images as the benchmarks publish them: text files, one image a line, fields between blanks."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import pandas as pd

from orthoproxy.core.errors import InputError


def find_file(root: Path, places: Sequence[str], remedy: str) -> Path:
    """Return the first of several places that holds a file: copies of a data set differ by a folder more or less.

    Parameters
    ----------
    root
        The data set's folder.
    places
        Where the file may lie, relative to `root`, the likeliest first.
    remedy
        What to do if it is at none of them; ends the message.

    Returns
    -------
    pathlib.Path
        The file, absolute.

    Raises
    ------
    InputError
        If the folder is missing or has the file at none of the places.

    Examples
    --------
    >>> find_file(Path("/"), ["images.txt", "birds/images.txt"], "unpack birds.zip there")
    Traceback (most recent call last):
    ...
    orthoproxy.core.errors.InputError: data.root: / has no images.txt and no birds/images.txt; unpack birds.zip there
    """
    if not root.is_dir():
        raise InputError(f"data.root: no folder {root}")
    for place in places:
        if (root / place).is_file():
            return root.absolute() / place
    raise InputError(f"data.root: {root} has no {' and no '.join(places)}; {remedy}")


def read_list(path: Path, columns: Sequence[str], *, header: bool = False, counted: bool = False) -> pd.DataFrame:
    """Read a list whose fields stand between blanks, one or more.

    Parameters
    ----------
    path
        A UTF-8 text file; line ends of any system, a byte-order mark and empty lines are fine.
    columns
        The names of the fields of a line.
    header
        Whether the first line holds these names.
    counted
        Whether the number of rows stands on a line before all others.

    Returns
    -------
    pandas.DataFrame
        Text in `columns`; the index is the number of the line, from 1.

    Raises
    ------
    InputError
        If the file is missing, not text or empty, if header or count are not as they should be, or if a line has
        more or fewer fields.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "list.txt")
    ...     _ = path.write_text("2\\nname   item\\na.jpg  7\\nb.jpg  7\\n")
    ...     read_list(path, ["name", "item"], header=True, counted=True)
        name item
    3  a.jpg    7
    4  b.jpg    7
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise InputError(f"data.root: no file {path}; unpack the data set's archive again") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"data.root: cannot read {path} as text: {error}") from error
    lines = [(number, fields) for number, line in enumerate(text.split("\n"), start=1) if (fields := line.split())]
    preamble, rows = lines[: header + counted], lines[header + counted :]
    if not rows:
        raise InputError(f"data.root: {path} lists no image; unpack the data set's archive again")
    if header and preamble[-1][1] != list(columns):
        number, fields = preamble[-1]
        raise InputError(
            f"data.root: line {number} of {path} is {' '.join(fields)!r} where the names {' '.join(columns)!r} belong; "
            "take the list as it was published"
        )
    for number, fields in rows:
        if len(fields) != len(columns):
            raise InputError(
                f"data.root: line {number} of {path} has {len(fields)} fields, not {len(columns)} "
                f"({' '.join(columns)}); take the list as it was published"
            )
    if counted and preamble[0][1] != [str(len(rows))]:
        raise InputError(
            f"data.root: line {preamble[0][0]} of {path} says {' '.join(preamble[0][1])!r}, but {len(rows)} images are "
            "listed; it may be cut short: take the list as it was published"
        )
    numbers, values = zip(*rows, strict=True)
    return pd.DataFrame(list(values), index=list(numbers), columns=list(columns))


def check_values(rows: pd.DataFrame, column: str, allowed: Collection[str], expected: str, path: Path) -> None:
    """Refuse a list with an unknown value, naming its line.

    Parameters
    ----------
    rows
        From `read_list`.
    column
        The column to check.
    allowed
        All values it may have.
    expected
        The same in words, for the message.
    path
        The list, for the message.

    Raises
    ------
    InputError
        For the first value that is not allowed.

    Examples
    --------
    >>> rows = pd.DataFrame({"status": ["train", "tset"]}, index=[3, 4])
    >>> check_values(rows, "status", {"train", "test"}, "train or test", Path("list.txt"))
    Traceback (most recent call last):
    ...
    orthoproxy.core.errors.InputError: data.root: line 4 of list.txt: status is 'tset'; it must be train or test
    """
    unknown = rows.loc[~rows[column].isin(list(allowed)), column]
    if len(unknown):
        raise InputError(
            f"data.root: line {unknown.index[0]} of {path}: {column} is {unknown.iloc[0]!r}; it must be {expected}"
        )
