"""A folder of images with one sub-folder for each class."""

from __future__ import annotations

import fnmatch
import os
import re
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pandas as pd

from orthoproxy.core.errors import InputError, escape
from orthoproxy.core.progress import note_once
from orthoproxy.data.images import readable_suffixes
from orthoproxy.data.table import make_table

SPLITS = {"train": "train", "val": "validation", "valid": "validation", "validation": "validation", "test": "test"}
# lower case; of Synology and QNAP, Windows, Linux, and archives made on a Mac
SYSTEM_NAMES = ("@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot", "thumbs.db", "desktop.ini")
SYSTEM_NAMES += ("$recycle.bin", "system volume information", "lost+found", "__macosx")
HEIC = (".heic", ".heics", ".heif", ".heifs", ".hif")


def folder_table(root: Path, allow_empty: bool = True, ignore: Sequence[str] = ()) -> pd.DataFrame:
    """Read a folder of images whose sub-folders are the classes.

    Parameters
    ----------
    root
        The name of a sub-folder is a class; its images may lie deeper. A sub-folder may be a symbolic link. Hidden
        files and folders are ignored, as are those that systems make for themselves, such as ``@eaDir``. Other files
        that are left out are counted on standard error, for example those without the suffix of an image format. Where
        all sub-folders are splits (train, val, valid, validation or test) that contain folders, the latter are the
        classes.
    allow_empty
        Ignore sub-folders without images instead of raising.
    ignore
        Patterns of `fnmatch` for files and folders to leave out, relative to `root`.

    Returns
    -------
    pandas.DataFrame
        See `make_table`; sorted by path, and without splits unless the folders are splits.

    Raises
    ------
    InputError
        If the folder does not exist or cannot be listed, no sub-folder has an image, or, unless `allow_empty`, one of
        them has none.

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
    images = labeled_files(root, ignore, need_label=True)
    if not images:
        hint = "put the images of each class in a sub-folder of its own"
        raise InputError("no images in sub-folders", field="root", path=root, hint=hint)
    paths, labels, splits = zip(*images, strict=True)
    used, parts = set(labels), [f"{name}/" for name in split_folders(root, ignore)] or [""]
    names = (part + name for part in parts for name in sub_folders(root, ignore, part) if name not in used)
    empty = sorted(root / name for name in names)
    if empty and not allow_empty:
        hint = "add images, remove the folder, or name it among those to ignore"
        problem = f"no images ({len(empty)} such folders)"
        raise InputError(problem, field="root", path=empty[0], hint=hint)
    return make_table([str(path.absolute()) for path in paths], labels, splits)


def split_folders(root: Path, ignore: Sequence[str] = ()) -> dict[str, str]:
    """Return the split of each sub-folder, as in ``train/gull/1.jpg``; nothing where sub-folders are classes."""
    splits = {name: SPLITS.get(name.lower(), "") for name in sub_folders(root, ignore)}
    return splits if all(splits.values()) and any(sub_folders(root, ignore, f"{name}/") for name in splits) else {}


def labeled_files(root: Path, ignore: Sequence[str] = (), need_label: bool = False) -> list[tuple[Path, str, str]]:
    """List image files at any depth, sorted by path, with the sub-folder and the split that each is in, or ""."""
    found: list[tuple[Path, str, str]] = []
    left_out: dict[tuple[str, str], list[str]] = {}
    pending, splits = [(root, "")], split_folders(root, ignore)
    while pending:
        folder, inside = pending.pop()
        for entry, is_folder, is_file in _list_folder(folder):
            place, suffix = inside + entry.name, Path(entry.name).suffix.lower()
            split, folders = splits.get(place.split("/")[0], ""), inside.split("/")[:-1]
            label = next(iter(folders[bool(split) :]), "")
            if is_left_out(place, ignore):
                continue
            if is_folder and not (label and entry.is_symlink()):
                pending.append((folder / entry.name, f"{place}/"))
            elif reason := _reason(entry, is_folder, is_file, suffix, need_label and not label):
                left_out.setdefault(reason, []).append(place)
            else:
                found.append((folder / entry.name, label, split))
    for (what, hint), places in sorted(left_out.items()):
        endings = Counter(Path(place).suffix.lower() for place in places).most_common()
        what = what.format(endings=", ".join(f"{count:,} {suffix}" for suffix, count in endings))
        note_once(f"{root}: {len(places):,} {what} left out, for example {min(places)}. Hint: {hint}")
    return sorted(found)


def sub_folders(root: Path, ignore: Sequence[str] = (), inside: str = "") -> set[str]:
    """Return the names of the folders directly in one or in the folder `inside` of it; none if it does not exist."""
    folder = root / inside
    names = [entry.name for entry, is_folder, _ in _list_folder(folder) if is_folder] if folder.is_dir() else []
    return {name for name in names if not is_left_out(inside + name, ignore) and name == escape(name)}


def is_left_out(place: str, ignore: Sequence[str]) -> bool:
    """Whether a path relative to the images' folder matches a pattern, is hidden, or made by a system for itself."""
    name = place.rpartition("/")[2]
    hidden = name.startswith(".") or name.lower() in SYSTEM_NAMES
    return hidden or (bool(ignore) and _matcher(*ignore).match(place) is not None)


@cache
def _matcher(*patterns: str) -> re.Pattern[str]:
    return re.compile("|".join(map(fnmatch.translate, patterns)))


def _list_folder(folder: Path) -> list[tuple[os.DirEntry[str], bool, bool]]:
    """Return the entries of a folder, and whether each is a folder or a file, links followed."""
    try:
        with os.scandir(folder) as entries:
            found = [(entry, Path(entry) if entry.is_symlink() else entry) for entry in entries]
            return [(entry, target.is_dir(), target.is_file()) for entry, target in found]
    except OSError as error:
        hint = "change its permissions, or name it among those to ignore"
        raise InputError(f"cannot list the folder: {error.strerror}", path=error.filename, hint=hint) from error


def _reason(
    entry: os.DirEntry[str], is_folder: bool, is_file: bool, suffix: str, lacks_label: bool
) -> tuple[str, str] | None:
    """Return what a file or linked folder that is left out is called, and what to do; None for an image."""
    if is_folder:
        return "linked sub-folders", "move the folders here, or list their images in a CSV file"
    if not is_file:
        return "links to nothing", "restore what they point to, or delete them"
    if not suffix:
        return "files without an ending", "if they are images, give them the ending of their format, such as .jpg"
    if suffix in HEIC and suffix not in readable_suffixes():
        return suffix, "pip install 'orthoproxy[heic]'"
    if suffix not in readable_suffixes():
        return "files of other formats ({endings})", "convert the images among them, for example to JPEG"
    if lacks_label:
        return "images in no sub-folder", "move each into the folder of its class"
    if entry.path != escape(entry.path):
        return "images whose names are not UTF-8", "rename them, for example with convmv"
    return None
