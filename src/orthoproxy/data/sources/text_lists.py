"""Text lists of images as the benchmarks publish them: one image a line, fields separated by blanks."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import pandas as pd

from orthoproxy.core.errors import InputError

UNPACK_AGAIN = "unpack the archive of the dataset again"
AS_PUBLISHED = "use the list as it was published"


def find_file(root: Path, candidates: Sequence[str], hint: str) -> Path:
    """Return the first existing candidate, absolute: copies of a dataset differ by a folder more or less."""
    if not root.is_dir():
        raise InputError("no such folder", field="root", path=root)
    found = next((root.absolute() / place for place in candidates if (root / place).is_file()), None)
    if found is None:
        raise InputError(f"{' and '.join(candidates)} not found", field="root", path=root, hint=hint)
    return found


def read_list(path: Path, columns: Sequence[str], *, header: bool = False, counted: bool = False) -> pd.DataFrame:
    """Read a list as text columns indexed by line number; `header` and `counted` tell which lines come first."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise InputError("no such file", field="root", path=path, hint=UNPACK_AGAIN) from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot be read as text: {error}", field="root", path=path) from error
    lines = [(number, fields) for number, line in enumerate(text.split("\n"), start=1) if (fields := line.split())]
    preamble, rows = lines[: header + counted], lines[header + counted :]
    if not rows:
        raise InputError("lists no images", field="root", path=path, hint=UNPACK_AGAIN)
    if header and preamble[-1][1] != list(columns):
        raise _line_error(path, preamble[-1][0], repr(" ".join(preamble[-1][1])), " ".join(columns))
    for number, fields in rows:
        if len(fields) != len(columns):
            raise _line_error(path, number, f"{len(fields)} fields", f"{len(columns)}: {' '.join(columns)}")
    if counted and preamble[0][1] != [str(len(rows))]:
        raise _line_error(path, preamble[0][0], repr(" ".join(preamble[0][1])), f"{len(rows)}, the number of images")
    numbers, values = zip(*rows, strict=True)
    return pd.DataFrame(list(values), index=list(numbers), columns=list(columns))


def check_values(rows: pd.DataFrame, column: str, allowed: Collection[str], expected: str, path: Path) -> None:
    """Raise for the first value of a column that is not allowed, with its line."""
    unknown = rows.loc[~rows[column].isin(list(allowed)), column]
    if len(unknown):
        raise _line_error(path, int(unknown.index[0]), f"{column} {unknown.iloc[0]!r}", expected)


def _line_error(path: Path, line: int, problem: str, expected: str) -> InputError:
    return InputError(f"line {line}: {problem}", field="root", path=path, expected=expected, hint=AS_PUBLISHED)
