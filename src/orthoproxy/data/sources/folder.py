"""A folder of images with one sub-folder for each class."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from orthoproxy.core.errors import InputError
from orthoproxy.data.images import readable_suffixes
from orthoproxy.data.table import make_table


def folder_table(root: Path, allow_empty: bool = True) -> pd.DataFrame:
    """Read a folder of images whose sub-folders are the classes.

    Parameters
    ----------
    root
        The name of a sub-folder is a class; its images may lie deeper. A sub-folder may be a symbolic link. Hidden
        files and folders are ignored, and files without the suffix of an image format.
    allow_empty
        Ignore sub-folders without images instead of raising.

    Returns
    -------
    pandas.DataFrame
        See `make_table`; without splits, sorted by path.

    Raises
    ------
    InputError
        If the folder does not exist, no sub-folder has an image, or, unless `allow_empty`, one of them has none.

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
    images = [(str(path.absolute()), label) for path, label in labelled_files(root) if label]
    if not images:
        hint = "put the images of each class in a sub-folder of its own"
        raise InputError("no images in sub-folders", field="root", path=root, hint=hint)
    paths, labels = zip(*images, strict=True)
    classes = {folder.name for folder in root.iterdir() if folder.is_dir() and not folder.name.startswith(".")}
    empty = sorted(classes - set(labels))
    if empty and not allow_empty:
        hint = "add images, remove the folder, or let its name begin with a dot"
        problem = f"no images ({len(empty)} such folders)"
        raise InputError(problem, field="root", path=root / empty[0], hint=hint)
    return make_table(paths, labels)


def labelled_files(root: Path) -> list[tuple[Path, str]]:
    """List image files at any depth with the sub-folder of `root` that each is in, or "", sorted by path."""
    found = []
    for entry in sorted(root.iterdir()):
        if entry.name.startswith("."):
            continue
        is_folder = entry.is_dir()
        for path in sorted(_files_below(entry)) if is_folder else [entry]:
            if path.suffix.lower() in readable_suffixes() and path.is_file():
                found.append((path, entry.name if is_folder else ""))
    return found


def _files_below(folder: Path) -> Iterator[Path]:
    """Yield the files at any depth that are not hidden; raise InputError for a folder that cannot be listed."""

    def fail(error: OSError) -> None:
        raise InputError(f"cannot list the folder: {error.strerror}", path=error.filename) from error

    for place, folders, names in os.walk(folder, onerror=fail):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(place) / name for name in names if not name.startswith("."))
