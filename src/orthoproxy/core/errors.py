"""Exceptions that users see without a traceback."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass, fields, replace
from difflib import get_close_matches
from functools import partial
from pathlib import Path


@dataclass(eq=False)
class InputError(ValueError):
    """Something the user gave cannot be used: a file, a field, an argument.

    The command line prints it without a traceback and exits with code 2; in Python it is a `ValueError`.

    Parameters
    ----------
    problem
        What is wrong, including the value found.
    field
        Name of the argument, as the raising function knows it; callers add their prefix with `within`.
    path
        File or folder at fault.
    expected
        What is allowed instead.
    hint
        What to do.

    Examples
    --------
    >>> error = InputError("0", field="batch_size", expected="at least 1")
    >>> raise error.within("training")
    Traceback (most recent call last):
    ...
    orthoproxy.core.errors.InputError: training.batch_size: 0 (expected at least 1)
    """

    problem: str
    _: KW_ONLY
    field: str | None = None
    path: str | Path | None = None
    expected: str | None = None
    hint: str | None = None

    def __str__(self) -> str:
        where = "".join(f"{part}: " for part in (self.field, self.path) if part is not None)
        expected = f" (expected {self.expected})" if self.expected else ""
        return f"{where}{self.problem}{expected}{f'. Hint: {self.hint}' if self.hint else ''}"

    def __reduce__(self) -> tuple[Callable[..., InputError], tuple[str]]:
        rest = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "problem"}
        return partial(type(self), **rest), (self.problem,)

    def within(self, prefix: str) -> InputError:
        """Return the same error with the field's name behind a prefix; unchanged where it names no field."""
        return replace(self, field=f"{prefix}.{self.field}") if self.field else self


@contextmanager
def field_prefix(prefix: str) -> Iterator[None]:
    """Add a prefix to the field of each `InputError` raised inside."""
    try:
        yield
    except InputError as error:
        raise error.within(prefix) from error.__cause__


class WorkerLost(RuntimeError):  # noqa: N818
    """A data loading process was killed; the input need not be at fault. The command line exits with code 1."""


class DivergedError(RuntimeError):
    """Training produced non-finite weights, or too many non-finite steps. The command line exits with code 1."""


@contextmanager
def os_errors_as_input_errors(path: str | Path, retry: str) -> Iterator[None]:
    """Turn a full disk, missing permissions and impossible paths into `InputError`; `retry` says what to do after."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            hint = f"free some space and {retry}"
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            hint = "change its permissions, or choose another path"
        elif error.errno in (errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG):
            hint = "choose another path"
        else:
            raise
        raise InputError(os.strerror(error.errno).lower(), path=error.filename or path, hint=hint) from error


def did_you_mean(name: str, choices: Iterable[str], otherwise: str | None = None, count: int = 1) -> str | None:
    """Return a hint with the most similar choices, or another one if none is similar."""
    close = get_close_matches(name, choices, count)
    return f"did you mean {', '.join(close)}?" if close else otherwise


def escape(name: str) -> str:
    """Return a file name with escapes for bytes that are not UTF-8; the same name if there are none."""
    return name.encode(errors="backslashreplace").decode()
