"""One's own images: a folder with one sub-folder a class."""

from __future__ import annotations

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
        Each sub-folder's name is a class; its images may lie deeper. A sub-folder may be a link. Hidden files and
        folders are left out, and so are files whose ending no image format that Pillow reads has.
    allow_empty
        Leave out sub-folders without images instead of taking them for a mistake.

    Returns
    -------
    pandas.DataFrame
        As `make_table`, without splits, sorted by path.

    Raises
    ------
    InputError
        If the folder is missing or holds no image in a sub-folder, or unless `allow_empty` in one of them.

    Examples
    --------
    >>> folder_table(Path("nowhere"))
    Traceback (most recent call last):
    ...
    orthoproxy.core.errors.InputError: data.root: no folder nowhere; give one that has a sub-folder of images a class
    """
    if not root.is_dir():
        raise InputError(f"data.root: no folder {root}; give one that has a sub-folder of images a class")
    classes = [folder for folder in sorted(root.iterdir()) if folder.is_dir() and not folder.name.startswith(".")]
    images = [(str(path.absolute()), label) for path, label in labelled_files(root) if label]
    if not images:
        raise InputError(f"data.root: {root} has no sub-folder with images; put each class in a folder of its own")
    paths, labels = zip(*images, strict=True)
    named = set(labels)
    empty = [folder for folder in classes if folder.name not in named]
    if empty and not allow_empty:
        raise InputError(
            f"data.root: no image in {empty[0]} ({len(empty)} such folders); "
            "add images or remove the folder, or let its name begin with a dot"
        )
    return make_table(paths, labels)


def labelled_files(root: Path) -> list[tuple[Path, str]]:
    """List the image files of a folder, at any depth, with the sub-folder that each lies in.

    Parameters
    ----------
    root
        A sub-folder directly in it may be a link. Hidden files and folders are left out, and so are files whose ending
        no image format that Pillow reads has.

    Returns
    -------
    list of tuple
        Path and name of the sub-folder, or an empty name for a file directly in `root`; in the order of the names.

    Examples
    --------
    >>> import tempfile
    >>> root = Path(tempfile.mkdtemp())
    >>> (root / "gull" / "winter").mkdir(parents=True)
    >>> for name in ("gull/winter/1.jpg", "2.png", "notes.txt"):
    ...     (root / name).touch()
    >>> [(path.name, label) for path, label in labelled_files(root)]
    [('2.png', ''), ('1.jpg', 'gull')]
    """
    found = []
    for entry in sorted(root.iterdir()):
        if entry.name.startswith("."):
            continue
        inside = entry.is_dir()
        for path in sorted(entry.rglob("*")) if inside else [entry]:
            hidden = any(part.startswith(".") for part in path.relative_to(entry).parts)
            if not hidden and path.suffix.lower() in readable_suffixes() and path.is_file():
                found.append((path, entry.name if inside else ""))
    return found
