"""A folder of images with one sub-folder for each class."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pandas as pd

from orthoproxy.core.errors import InputError
from orthoproxy.data.images import readable_suffixes
from orthoproxy.data.table import make_table

SPLITS = {"train": "train", "val": "validation", "valid": "validation", "validation": "validation", "test": "test"}


def folder_table(root: Path, allow_empty: bool = True) -> pd.DataFrame:
    """Read a folder of images whose sub-folders are the classes.

    Parameters
    ----------
    root
        The name of a sub-folder is a class; its images may lie deeper. A sub-folder may be a symbolic link. Hidden
        files and folders are ignored, and files without the suffix of an image format. Where all sub-folders are splits
        (train, val, valid, validation or test) that contain folders, the latter are the classes.
    allow_empty
        Ignore sub-folders without images instead of raising.

    Returns
    -------
    pandas.DataFrame
        See `make_table`; sorted by path, and without splits unless the folders are splits.

    Raises
    ------
    InputError
        If the folder does not exist, no sub-folder has an image, or, unless `allow_empty`, one of them has none; or if
        a class is in two splits.

    Examples
    --------
    >>> import tempfile
    >>> root = Path(tempfile.mkdtemp())
    >>> for name in ("gull/1.jpg", "tern/winter/2.jpg"):
    ...     (root / name).parent.mkdir(parents=True)
    ...     (root / name).touch()
    >>> folder_table(root)["label"].tolist()
    ['gull', 'tern']
    """
    if not root.is_dir():
        raise InputError("no such folder", field="root", path=root)
    images = [(str(path.absolute()), label, split) for path, label, split in labelled_files(root) if label]
    if not images:
        hint = "put the images of each class in a sub-folder of its own"
        raise InputError("no images in sub-folders", field="root", path=root, hint=hint)
    paths, labels, splits = zip(*images, strict=True)
    used, parts = set(labels), [root / name for name in split_folders(root)] or [root]
    empty = sorted(folder for part in parts for folder in _sub_folders(part) if folder.name not in used)
    if empty and not allow_empty:
        hint = "add images, remove the folder, or let its name begin with a dot"
        problem = f"no images ({len(empty)} such folders)"
        raise InputError(problem, field="root", path=empty[0], hint=hint)
    try:
        return make_table(paths, labels, splits)
    except InputError as error:
        hint = "move each class into one of the folders, or give only one of them as the folder of images"
        raise replace(error, field="root", path=root, hint=hint) from error


def split_folders(root: Path) -> dict[str, str]:
    """Return the split of each sub-folder, as in ``train/gull/1.jpg``; nothing where sub-folders are classes."""
    folders = _sub_folders(root)
    splits = {folder.name: SPLITS.get(folder.name.lower(), "") for folder in folders}
    return splits if all(splits.values()) and any(map(_sub_folders, folders)) else {}


def _sub_folders(root: Path) -> list[Path]:
    return sorted(entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def labelled_files(root: Path) -> list[tuple[Path, str, str]]:
    """List image files at any depth, sorted by path, with the sub-folder and the split that each is in, or ""."""
    found, splits = [], split_folders(root)
    for entry in sorted(root.iterdir()):
        if entry.name.startswith("."):
            continue
        if entry.name in splits:
            found += [(path, label, splits[entry.name]) for path, label, _ in labelled_files(entry)]
            continue
        is_folder = entry.is_dir()
        for path in sorted(_files_below(entry)) if is_folder else [entry]:
            if path.suffix.lower() in readable_suffixes() and path.is_file():
                found.append((path, entry.name if is_folder else "", ""))
    return found


def _files_below(folder: Path) -> Iterator[Path]:
    """Yield the files at any depth that are not hidden; raise InputError for a folder that cannot be listed."""

    def fail(error: OSError) -> None:
        raise InputError(f"cannot list the folder: {error.strerror}", path=error.filename) from error

    for place, folders, names in os.walk(folder, onerror=fail):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(place) / name for name in names if not name.startswith("."))
