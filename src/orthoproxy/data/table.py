"""The table of images that every source is read into, and its splits."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Int, Integer

from orthoproxy.core.errors import InputError

ALLOWED = {"split": ("train", "validation", "test", ""), "role": ("both", "query", "gallery")}


def make_table(
    path: Sequence[object],
    label: Sequence[object],
    split: Sequence[str] | str = "",
    role: Sequence[str] | str = "both",
    group: Sequence[str] | str = "",
    category: Sequence[str] | str = "",
) -> pd.DataFrame:
    """Make a checked table of images.

    Parameters
    ----------
    path
        Image files, one a row. Rows that name the same image, also through a link to its folder, are merged: an image
        that is a query in one row and part of the gallery in another becomes ``both``.
    label
        Class name of each image; numbers are taken as names. Empty for a distractor: an image of no class, which has
        role ``gallery`` and is not in the training split.
    split
        ``train``, ``validation`` or ``test``; or empty, for `assign_split` to fill in.
    role
        In retrieval, an image is a ``query``, part of the ``gallery``, or ``both``.
    group
        What the image was taken with or belongs to (a camera, a font family), so that it can be excluded from a query's
        gallery; or empty.
    category
        What kind of thing the class is (``shoe`` for a model of shoe); one for each class, or empty in the whole table.

    Returns
    -------
    pandas.DataFrame
        Columns `path, label, split, role, group, category`, all text, with an index from 0.

    Raises
    ------
    InputError
        If the table is empty, a path is empty, or the label of an image that is no distractor, a split or role is
        unknown, an image has several labels, splits or groups, or a class is not in exactly one category.

    Examples
    --------
    >>> table = make_table(["a.png", "b.png"], ["cat", "dog"], split="train")
    >>> table[["path", "label", "split", "role"]]
        path label  split  role
    0  a.png   cat  train  both
    1  b.png   dog  train  both
    """
    given = {"path": path, "label": label, "split": split, "role": role, "group": group, "category": category}
    columns = {name: value if isinstance(value, str) else list(value) for name, value in given.items()}
    table = pd.DataFrame(columns).fillna("").astype(str)
    if table.empty:
        raise InputError("no images")
    labeled = (table["role"] != "gallery") | (table["split"] == "train")
    for name, required, expected in (
        ("path", True, None),
        ("label", labeled, "a class, or role gallery outside of the training split, for a distractor"),
    ):
        if (empty := ((table[name] == "") & required).to_numpy()).any():
            row = int(empty.argmax())
            problem = f"empty in row {row + 1}: {table.loc[row, ['path', 'label']].to_dict()}"
            raise InputError(problem, field=name, expected=expected)
    if (invalid := table["path"].str.contains("\0", regex=False)).any():
        raise InputError(f"{table['path'][invalid].iloc[0]!r} contains a NUL character", field="path")
    for name, allowed in ALLOWED.items():
        if unknown := sorted(set(table[name]) - set(allowed)):
            expected = " or ".join(value or "nothing" for value in allowed)
            raise InputError(repr(unknown[0]), field=name, expected=expected)
    table["path"] = _name_folders_once(table["path"].map(os.path.normpath))
    table = _merge_rows(table)
    if (table["category"] != "").any():
        _require_one_per_class(table, "category", "category", "one for each class")
    return table


@contextmanager
def source_errors(field: str, path: Path) -> Iterator[None]:
    """Let errors of `make_table` and `paths_inside` name the argument and the file of the reader that calls them."""
    try:
        yield
    except InputError as error:
        column = f"column {error.field!r}: " if error.field else ""
        raise replace(error, problem=column + error.problem, field=field, path=error.path or path) from error


def _name_folders_once(paths: pd.Series) -> pd.Series:
    """Replace the names of a folder, where links give it several, by the first one."""
    folders, first = paths.map(os.path.dirname), dict[str, str]()
    names = {folder: first.setdefault(os.path.realpath(folder), folder) for folder in folders.unique()}
    if len(first) == len(names):
        return paths
    return pd.Series([str(Path(names[folder], Path(path).name)) for folder, path in zip(folders, paths, strict=True)])


def _merge_rows(table: pd.DataFrame) -> pd.DataFrame:
    """Keep one row of each image, which would be its own neighbor otherwise."""
    if table["path"].is_unique:
        return table
    table = table.drop_duplicates()
    table.loc[table["path"].duplicated(keep=False), "role"] = "both"
    table = table.drop_duplicates(ignore_index=True)
    repeated = table["path"][table["path"].duplicated()]
    if len(repeated):
        rows = table[table["path"] == repeated.iloc[0]]
        column = next(name for name in ("label", "split", "group", "category") if rows[name].nunique() > 1)
        values = " and ".join(map(repr, rows[column].unique()))
        raise InputError(f"{values} for the same image", field=column, path=repeated.iloc[0])
    return table


def _require_one_per_class(table: pd.DataFrame, column: str, field: str, expected: str) -> None:
    """Raise InputError if a class has several values in a column, or none."""
    pairs = table.loc[table["label"] != "", ["label", column]].drop_duplicates()
    wrong = pairs.loc[pairs["label"].duplicated() | (pairs[column] == ""), "label"]
    if len(wrong):
        found = " and ".join(sorted(name or "none" for name in pairs.loc[pairs["label"] == wrong.min(), column]))
        problem = f"class {wrong.min()!r} is in {found} ({wrong.nunique()} such classes)"
        raise InputError(problem, field=field, expected=expected)


def class_numbers(table: pd.DataFrame) -> tuple[Int[np.ndarray, " N"], list[str]]:
    """Return the number of each row's class, -1 for a distractor, and the names of the classes, sorted."""
    numbers, names = pd.factorize(table["label"].where(table["label"] != ""), sort=True)
    return numbers, names.tolist()


def integer_labels(labels: object) -> Integer[np.ndarray, " N"]:
    """Return labels as an array of their integer type; raises InputError for any other type."""
    array = np.asarray(labels)
    if not np.issubdtype(array.dtype, np.integer):
        raise InputError(f"of type {array.dtype}", field="labels", expected="integers")
    return array


def rank_by_hash(names: Iterable[str], salt: str) -> list[str]:
    """Sort distinct names by the SHA-256 of ``salt/name``: a fixed shuffle that depends on the names alone."""
    return sorted(set(names), key=lambda name: hashlib.sha256(f"{salt}/{name}".encode()).digest())


def assign_split(table: pd.DataFrame, test_fraction: float, test_classes: Sequence[str] | None = None) -> pd.DataFrame:
    """Assign classes without a split to test or train; rows with a split keep it, as do other rows of their class.

    Distractors go to test. A fraction of these classes goes to test, chosen by a hash of the class name, two if that
    is one and there are four or more; or exactly `test_classes`. Raises InputError if one of those does not exist, or
    has a split, or a class is in two splits.
    """
    expected = "each class in one split, as unseen classes are evaluated; or image, to evaluate known classes"
    _require_one_per_class(table[table["split"] != ""], "split", "split_by", expected)
    table = table.copy()
    table.loc[(table["split"] == "") & (table["label"] == ""), "split"] = "test"
    unassigned = table["split"] == ""
    known = table[~unassigned].drop_duplicates("label").set_index("label")["split"]
    free = set(table.loc[unassigned, "label"]) - set(known.index)
    ranked = rank_by_hash(free, salt="test")
    count = round(test_fraction * len(ranked))
    count += count == 1 and len(ranked) > 3  # a single test class makes any score 100
    chosen = set(ranked[:count]) if test_classes is None else set(test_classes)
    if chosen - free:
        raise InputError(f"{min(chosen - free)!r} is not a class of the data, or has a split", field="test_classes")
    splits = {**{name: "test" if name in chosen else "train" for name in free}, **known.to_dict()}
    table.loc[unassigned, "split"] = table.loc[unassigned, "label"].map(splits)
    return table


def hold_out_validation(table: pd.DataFrame, fraction: float) -> pd.DataFrame:
    """Move a fraction of the training classes to validation, chosen by a hash of the class name.

    A table that has validation classes is left as it is. Fewer than two classes cannot be ranked, so then none is
    moved.
    """
    table = table.copy()
    if ((table["split"] == "validation") & (table["label"] != "")).any():
        return table
    ranked = rank_by_hash(table.loc[table["split"] == "train", "label"], salt="validation")
    chosen = ranked[: round(fraction * len(ranked))]
    if len(chosen) >= 2:
        table.loc[table["label"].isin(chosen), "split"] = "validation"
    return table


def split_images(table: pd.DataFrame, root: Path, test_fraction: float, validation_fraction: float) -> pd.DataFrame:
    """Assign a fraction of each class's images to test and, unless the table has some, of the others to validation."""
    # chosen by a hash of their path relative to `root`; each class keeps two for training, if it has two
    table, free = table.copy(), table["split"] == ""
    table.loc[free, "split"] = np.where(table["label"][free] == "", "test", "train")  # a distractor is not trained on
    places = _places(table, root, salt="image")
    held_out = {"test": (test_fraction, free)}
    if not ((table["split"] == "validation") & (table["label"] != "")).any():
        held_out["validation"] = (validation_fraction, pd.Series(True, table.index))
    for split, (fraction, candidates) in held_out.items():
        training = table["label"][table["split"] == "train"]
        labels = training[candidates[training.index]]
        sizes, left = (of.value_counts().loc[labels].to_numpy() for of in (labels, training))
        chosen = places[labels.index].groupby(labels).rank() <= np.minimum((fraction * sizes).round(), left - 2)
        table.loc[labels.index[chosen], "split"] = split
    return table


def limit_training_images(table: pd.DataFrame, root: Path, count: int, seed: int) -> pd.DataFrame:
    """Keep at most `count` training images per class, by a hash of seed and relative path: fewer are some of more."""
    training = table[table["split"] == "train"]
    ranks = _places(training, root, salt=f"limit {seed}").groupby(training["label"]).rank()
    return table.drop(training.index[ranks > count]).reset_index(drop=True)


def _places(table: pd.DataFrame, root: Path, salt: str) -> pd.Series:
    """Return the place of each image in a shuffle by a hash of its path relative to `root`."""
    names = pd.Series([os.path.relpath(path, root) for path in table["path"]], table.index)
    return names.map({name: place for place, name in enumerate(rank_by_hash(names, salt))})


def select_split(table: pd.DataFrame, split: str) -> pd.DataFrame:
    """Return the rows of one split, with an index from 0."""
    return table[table["split"] == split].reset_index(drop=True)


def evaluation_images(table: pd.DataFrame, split: str) -> pd.DataFrame:
    """Return the images to evaluate a split on; known classes search among the training images, without distractors."""
    images, training = select_split(table, split), select_split(table, "train")
    labeled = images[images["label"] != ""]
    if labeled.empty or not labeled["label"].isin(training["label"]).any():
        return labeled if labeled.empty else images
    return pd.concat([labeled.assign(role="query"), training.assign(role="gallery")], ignore_index=True)
