"""One's own images: a folder with one sub-folder a class."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from PIL import Image

from orthoproxy.data.table import make_table
from orthoproxy.errors import InputError


def folder_table(root: Path) -> pd.DataFrame:
    """Read a folder of images whose sub-folders are the classes.

    Parameters
    ----------
    root
        Each sub-folder's name is a class; its images may lie deeper. Hidden files and folders are left out, and so are
        files that no image format of Pillow claims by its ending.

    Returns
    -------
    pandas.DataFrame
        As `make_table`, without splits, sorted by path.

    Raises
    ------
    InputError
        If the folder is missing or holds no image in a sub-folder.

    Examples
    --------
    >>> folder_table(Path("nowhere"))
    Traceback (most recent call last):
    ...
    orthoproxy.errors.InputError: data.root: no folder nowhere
    """
    if not root.is_dir():
        raise InputError(f"data.root: no folder {root}")
    endings = set(Image.registered_extensions())
    paths = [
        path
        for path in sorted(root.rglob("*"))
        if path.suffix.lower() in endings and not any(part.startswith(".") for part in path.relative_to(root).parts)
    ]
    labels = [path.relative_to(root).parts[0] for path in paths if path.parent != root]
    paths = [str(path.absolute()) for path in paths if path.parent != root]
    if not paths:
        raise InputError(f"data.root: {root} has no sub-folder with images; put each class in a folder of its own")
    return make_table(paths, labels)
