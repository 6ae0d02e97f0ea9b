"""The one table that every source of images becomes: path, label, split, role, group."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Sequence

import pandas as pd

from orthoproxy.core.errors import InputError

COLUMNS = ("path", "label", "split", "role", "group")
ALLOWED = {"split": ("train", "validation", "test", ""), "role": ("both", "query", "gallery")}


def make_table(
    path: Sequence[object],
    label: Sequence[object],
    split: Sequence[str] | str = "",
    role: Sequence[str] | str = "both",
    group: Sequence[str] | str = "",
) -> pd.DataFrame:
    """Put images and what is known of them into the project's table, checked.

    Parameters
    ----------
    path
        Image files, one a row.
    label
        Class name of each image; numbers are taken as names.
    split
        ``train``, ``validation`` or ``test``; empty where the source does not say (see `assign_split`).
    role
        In retrieval, an image is a ``query``, part of the ``gallery``, or ``both``.
    group
        What took the picture (a camera, a font family), so that it can be left out of a query's gallery; or empty.

    Returns
    -------
    pandas.DataFrame
        Columns `path, label, split, role, group`, all text, with a fresh index from 0.

    Raises
    ------
    InputError
        For an empty table, an empty path or label, a path that no file can have, an unknown split or role, or a class
        in two splits.

    Examples
    --------
    >>> table = make_table(["a.png", "b.png"], ["cat", "dog"], split="train")
    >>> table[["path", "label", "split", "role"]]
        path label  split  role
    0  a.png   cat  train  both
    1  b.png   dog  train  both
    """
    columns = {"path": list(path), "label": list(label)}
    given = (path, label, *(x for x in (split, role, group) if not isinstance(x, str)))
    if len({len(x) for x in given}) > 1:
        raise InputError(f"the columns of a table must be equally long, not {sorted({len(x) for x in given})}")
    for name, value in (("split", split), ("role", role), ("group", group)):
        columns[name] = [value] * len(columns["path"]) if isinstance(value, str) else list(value)
    table = pd.DataFrame(columns).fillna("").astype(str)
    if table.empty:
        raise InputError("the data has no images; check data.root and data.path")
    for name in ("path", "label"):
        empty = (table[name] == "").to_numpy()
        if empty.any():
            row = int(empty.argmax())
            raise InputError(
                f"{name}: empty in row {row + 1} ({table.loc[row, ['path', 'label']].to_dict()}); fill it in"
            )
    if (nul := table["path"].str.contains("\0", regex=False)).any():
        raise InputError(f"path: {table['path'][nul].iloc[0]!r} holds a NUL, which no file's name does; correct it")
    for name, allowed in ALLOWED.items():
        unknown = sorted(set(table[name]) - set(allowed))
        if unknown:
            choices = ", ".join(value or "(empty)" for value in allowed)
            raise InputError(f"{name}: unknown value {unknown[0]!r}; one of {choices}")
    labels = {split: set(table.label[table.split == split]) for split in ("train", "validation", "test")}
    for one, other in itertools.combinations(labels, 2):
        shared = labels[one] & labels[other]
        if shared:
            raise InputError(
                f"split: class {min(shared)!r} is in {one} and in {other} ({len(shared)} such); "
                "retrieval is judged on classes never seen before, so give each class to one split"
            )
    return table


def rank_by_hash(names: Iterable[str], salt: str) -> list[str]:
    """Order class names by a hash: a fixed shuffle that depends on the names alone.

    Parameters
    ----------
    names
        Class names; repeats count once.
    salt
        A word that makes one shuffle independent of another.

    Returns
    -------
    list of str
        Each name once, by the SHA-256 of ``salt/name``.

    Examples
    --------
    >>> rank_by_hash(["a", "b", "c"], salt="test")
    ['a', 'b', 'c']
    """
    return sorted(set(names), key=lambda name: hashlib.sha256(f"{salt}/{name}".encode()).digest())


def assign_split(table: pd.DataFrame, test_fraction: float, test_classes: Sequence[str] | None = None) -> pd.DataFrame:
    """Give every row without a split one: a share of the classes, or those named, to test, the others to train.

    Parameters
    ----------
    table
        From `make_table`.
    test_fraction
        Share of the classes without a split that go to test, by hash of the class name, 0 to 1.
    test_classes
        The classes that go to test, by name; None to go by the share.

    Returns
    -------
    pandas.DataFrame
        A copy in which no split is empty. Rows with a split keep it, and so does every other row of their class.

    Raises
    ------
    InputError
        If a class named is not there, or has another split already.

    Examples
    --------
    >>> table = make_table(["1.png", "2.png", "3.png"], ["a", "b", "c"])
    >>> assign_split(table, test_fraction=1 / 3)["split"].tolist()
    ['test', 'train', 'train']
    """
    table = table.copy()
    open_rows = table["split"] == ""
    known = dict(zip(table.label[~open_rows], table.split[~open_rows], strict=True))
    free = set(table.label[open_rows]) - set(known)
    ranked = rank_by_hash(free, salt="test")
    chosen = set(ranked[: round(test_fraction * len(ranked))]) if test_classes is None else set(test_classes)
    if test_classes is not None and chosen - free:
        raise InputError(f"data.test_classes: {min(chosen - free)!r} is no class of the data, or has a split already")
    table.loc[open_rows, "split"] = [
        known.get(label, "test" if label in chosen else "train") for label in table.label[open_rows]
    ]
    return table


def hold_out_validation(table: pd.DataFrame, fraction: float) -> pd.DataFrame:
    """Move a share of the training classes to validation, by hash of the class name.

    Where the source itself has validation classes, these stay and nothing is moved.

    Parameters
    ----------
    table
        With every split assigned.
    fraction
        Share of the training classes, 0 to 1. Fewer than two classes cannot be ranked, so then none is moved.

    Returns
    -------
    pandas.DataFrame
        A copy with ``validation`` among its splits.

    Examples
    --------
    >>> table = make_table(["1.png", "2.png", "3.png", "4.png"], ["a", "b", "c", "d"], split="train")
    >>> hold_out_validation(table, 0.5)["split"].tolist()
    ['validation', 'train', 'train', 'validation']
    """
    table = table.copy()
    if (table.split == "validation").any():
        return table
    ranked = rank_by_hash(table.label[table.split == "train"], salt="validation")
    chosen = ranked[: round(fraction * len(ranked))]
    if len(chosen) >= 2:
        table.loc[table.label.isin(chosen), "split"] = "validation"
    return table


def select_split(table: pd.DataFrame, split: str) -> pd.DataFrame:
    """Return the rows of one split, with a fresh index from 0.

    Parameters
    ----------
    table
        From `make_table`.
    split
        The split to keep.

    Returns
    -------
    pandas.DataFrame
        Possibly empty.

    Examples
    --------
    >>> table = make_table(["1.png", "2.png"], ["a", "b"], split=["train", "test"])
    >>> select_split(table, "test")["path"].tolist()
    ['2.png']
    """
    return table[table.split == split].reset_index(drop=True)
