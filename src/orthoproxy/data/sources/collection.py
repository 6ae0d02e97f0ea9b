"""A collection to embed or index: images below one folder, with labels and groups where these are known."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from orthoproxy.core.errors import InputError
from orthoproxy.data.sources.csv import read_rows
from orthoproxy.data.sources.folder import labeled_files


@dataclass(frozen=True)
class Collection:
    """Images below one folder: `path` relative to the absolute `root`, with slashes; `label` and `group`, or empty."""

    root: Path
    images: pd.DataFrame

    def __len__(self) -> int:
        return len(self.images)


def read_collection(source: Path, root: Path | None = None, ignore: Sequence[str] = ()) -> Collection:
    """Find the images of a folder, at any depth and sorted by path, or of a CSV file, in its order.

    The label of an image is the sub-folder it is in, directly or deeper; images in no sub-folder have none. A CSV file
    has a column ``path``, and optionally ``label`` and ``group``. `root` is the folder that contains all images; None
    for the folder itself, or for that of the CSV file. `ignore` is as in `folder_table`.
    """
    if source.is_dir():
        files = [(str(path.absolute()), label) for path, label, _ in labeled_files(source, ignore)]
        if not files:
            raise InputError("no images in this folder or below", field="source", path=source)
        return make_collection(pd.DataFrame(files, columns=["path", "label"], dtype=object), root or source)
    if not source.is_file():
        raise InputError("no such folder or CSV file", field="source", path=source)
    table = read_rows(source, required=("path",), field="source")
    if table.empty:
        raise InputError("lists no images", field="source", path=source)
    folder = (root or source.parent).absolute()
    table["path"] = [str(folder / path) for path in table["path"]]
    return make_collection(table, folder)


def make_collection(table: pd.DataFrame, root: Path | None = None) -> Collection:
    """Make a collection of a table with `path`, perhaps `label` and `group`; `root` None is the deepest folder."""
    paths = [os.path.abspath(path) for path in table["path"]]  # noqa: PTH100 -- ten times as fast
    parents = {path.rpartition(os.sep)[0] or os.sep for path in paths}
    folder = Path(os.path.normpath(root.absolute()) if root else os.path.commonpath(parents))
    prefix = str(folder).rstrip(os.sep) + os.sep
    outside = next((path for path in paths if not path.startswith(prefix)), None)
    if outside is not None:
        hint = "set root to the folder that contains all images"
        raise InputError(f"not in the folder {folder}", field="root", path=outside, hint=hint)
    relative = [path.removeprefix(prefix).replace(os.sep, "/") for path in paths]
    known = {name: table[name].fillna("").map(str).tolist() if name in table else "" for name in ("label", "group")}
    # of dtype object, since a file name need not be valid Unicode
    images = pd.DataFrame({"path": relative, **known}, dtype=object).drop_duplicates(ignore_index=True)
    repeated = images["path"][images["path"].duplicated()]
    if len(repeated):
        raise InputError("listed with different labels or groups", path=folder / repeated.iloc[0])
    return Collection(folder, images)
