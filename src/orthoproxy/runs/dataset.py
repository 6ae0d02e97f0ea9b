"""The images of a run: read once, split, and checked before training."""

from __future__ import annotations

import os
import sys
import unicodedata
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from orthoproxy.core.distributed import (
    broadcast_object,
    gather_objects,
    is_first_of_machine,
    is_main,
    local_slice,
    raise_together,
    split_sizes,
)
from orthoproxy.core.environment import file_versions
from orthoproxy.core.errors import InputError, field_prefix
from orthoproxy.data import (
    assign_split,
    cars_table,
    csv_table,
    cub_table,
    folder_table,
    hold_out_validation,
    icons_table,
    inshop_table,
    sop_table,
)
from orthoproxy.data.audit.duplicates import duplicates_across_splits, find_copies
from orthoproxy.data.audit.scan import drop_rows, find_unreadable
from orthoproxy.data.sources.folder import split_folders
from orthoproxy.data.sources.packed import SUFFIXES, unpack
from orthoproxy.data.table import class_numbers, evaluation_images, limit_training_images, select_split, split_images
from orthoproxy.embedding.embedder import Embedder
from orthoproxy.evaluation.evaluate import require_scorable
from orthoproxy.runs.config import Config, DataConfig
from orthoproxy.runs.device import make_scoring
from orthoproxy.runs.run_folder import RunFolder


def read_table(data: DataConfig) -> pd.DataFrame:
    """Read the table of a dataset, in the form of `make_table`, with the splits that the dataset itself defines.

    Parameters
    ----------
    data
        Section `data` of a configuration.

    Raises
    ------
    InputError
        If the dataset cannot be read.

    Examples
    --------
    >>> from orthoproxy.runs.config import DataConfig
    >>> try:
    ...     read_table(DataConfig(name="folder", root="nowhere"))
    ... except InputError as error:
    ...     error.field
    'data.root'
    """
    root = Path(data.root) if data.root else None
    with_boxes = {"cub": cub_table, "cars": cars_table}
    with field_prefix("data"):
        if data.name == "icons":
            return icons_table(root or user_cache() / "icons")
        if data.name == "csv":
            return csv_table(Path(data.csv or ""), root, data.allow_paths_outside_root)
        if data.name in SUFFIXES:
            images = unpack_images(data)
            try:
                return csv_table(images)
            except InputError as error:
                raise replace(error, field="root", path=data.root) from error
        if data.name == "folder":
            return folder_table(root or Path(), allow_empty=False, ignore=data.ignore)
        if data.name in with_boxes:
            return with_boxes[data.name](root or Path(), data.boxes)
        return {"sop": sop_table, "inshop": inshop_table}[data.name](root or Path())


def unpack_images(data: DataConfig) -> Path:
    """Unpack Parquet files or WebDataset tars into the user cache; return the CSV file of their images."""
    return unpack(Path(data.root or ""), data.name, user_cache() / "unpacked")


def split_table(config: Config) -> pd.DataFrame:
    """Read a dataset, assign every class, or every image, to a split, and limit the training images."""
    data = config.data
    table = read_table(data)
    with field_prefix("data"):
        validation = data.validation_fraction if config.checkpoint_selection.split == "validation" else 0.0
        if data.split_by == "image":
            table = split_images(table, _image_root(data, table), data.test_fraction, validation)
        else:
            table = assign_split(table, data.test_fraction, data.test_classes)
            table = hold_out_validation(table, validation)
    if data.max_images_per_class:
        root = _image_root(data, table)
        table = limit_training_images(table, root, data.max_images_per_class, config.training.seed)
    if not (table["split"] == "train").any():
        raise InputError("no class is left for training", field="data.test_fraction", hint="lower it or add classes")
    return table


def _image_root(data: DataConfig, table: pd.DataFrame) -> Path:
    """Return the folder that the names of images are relative to."""
    if data.name in SUFFIXES:
        return Path(table["path"][0]).parent
    return Path(data.root or (Path(data.csv).parent if data.csv else user_cache() / "icons"))


def read_splits(config: Config) -> pd.DataFrame:
    """Read the table of a dataset with its splits once per machine; the same in every process."""
    table = None
    with raise_together():
        if is_first_of_machine():  # on every machine, as icons are rendered on the way
            table = split_table(config)
            if config.evaluation.exclude_duplicates:
                evaluated = (table["split"] != "train") | (config.data.split_by == "image")
                copies = pd.Series(find_copies(table[evaluated], config.data.workers), table.index[evaluated])
                table["copies"] = copies.reindex(table.index, fill_value=-1)
    table = broadcast_object(table)
    assert table is not None
    return table


def read_readable_images(config: Config, run: RunFolder) -> tuple[pd.DataFrame, pd.DataFrame | None]:
    """Read the table; leave out unreadable images if wanted, as found when the run started."""
    table = read_splits(config)
    with raise_together():
        if config.sampler.by_category and (table["category"] == "").all():
            hint = "add a column category to a CSV file, or set it to false"
            raise InputError("the images have no categories", field="sampler.by_category", hint=hint)
    if config.data.on_unreadable_image == "raise":
        return table, None
    unreadable = run.unreadable if broadcast_object(run.has_state) else _find_unreadable(table, config.data.workers)
    return (table, None) if unreadable is None else (drop_rows(table, unreadable), unreadable)


def _find_unreadable(table: pd.DataFrame, workers: int) -> pd.DataFrame:
    """Read all images, divided among the processes."""
    with raise_together():
        part = find_unreadable(table.iloc[local_slice(split_sizes(len(table)))], workers)
    return pd.concat(gather_objects(part), ignore_index=True)


def check_images(table: pd.DataFrame, unreadable: pd.DataFrame | None, config: Config) -> np.ndarray | None:
    """Print the splits and return file versions, on the main process; InputError for what would prevent training."""
    splits = {name: select_split(table, name) for name in ("train", "validation", "test")}
    evaluated = {
        name: evaluation_images(table, name) for name in {config.checkpoint_selection.split, "test"} - {"none"}
    }
    with raise_together():
        if not is_main():
            return None
        sizes = [f"{name} {len(class_numbers(x)[1])} classes, {len(x)} images" for name, x in splits.items() if len(x)]
        print(f"{config.data.name}: {'; '.join(sizes)}", file=sys.stderr)
        if unreadable is not None and len(unreadable):
            first = unreadable.iloc[0]
            warn(f"{len(unreadable)} unreadable images left out, for example {first['path']}: {first['reason']}")
        counts = table["label"][table["label"] != ""].value_counts()
        if single := sorted(counts.index[counts == 1]):
            warn(f"{len(single)} classes have a single image, for example {single[0]!r}")
        warn_about_table(table, config.data)
        paths = table["path"].tolist()
        versions = file_versions(paths)
        missing = (versions[:, 0] < 0).nonzero()[0]
        if len(missing):
            field = "data.csv" if config.data.csv else "data.root"
            hint = "set data.on_unreadable_image to skip to leave them out"
            raise InputError(f"{len(missing)} image files are missing", field=field, path=paths[missing[0]], hint=hint)
        for name, split in {"train": splits["train"], **evaluated}.items():
            if split["label"].nunique() == 1:
                field = "data.validation_fraction" if name == "validation" else "data.test_fraction"
                hint = f"change it, or add {name} classes{'; 0 trains without evaluation' * (name == 'test')}"
                problem = f"one {name} class, {split['label'].iloc[0]!r}"
                raise InputError(problem, field=field, expected="at least two classes", hint=hint)
        for name, split in evaluated.items():
            if len(split):
                require_scorable(split, make_scoring(config.evaluation), f"{name} classes")
        if config.encoder.init_from.startswith("run:"):
            _require_unseen(config.encoder.init_from, evaluated, set(splits["train"]["label"]))
        if copies := duplicates_across_splits(paths, table["split"].tolist(), versions[:, 0]):
            one, other = table.iloc[copies[0]].drop_duplicates("split").to_dict("records")[:2]
            pair = " and ".join(f"{x['path']} ({x['split']}, {x['label']})" for x in (one, other))
            warn(f"{len(copies)} images are in several splits, for example {pair}; scores on them mean little")
        return versions


def warn_about_table(table: pd.DataFrame, data: DataConfig) -> None:
    """Print which folders are splits; warn about labels that look the same and groups that exclude nothing."""
    if data.name == "folder" and (folders := split_folders(Path(data.root or ""), data.ignore)):
        print(f"{data.root}: the folders {', '.join(sorted(folders))} are splits, not classes", file=sys.stderr)
    seen: dict[str, str] = {}
    labels = sorted(set(table["label"]))
    normalized = (unicodedata.normalize("NFC", label).strip() for label in labels)
    pairs = zip(normalized, labels, strict=True)
    if alike := [(seen[key], label) for key, label in pairs if seen.setdefault(key, label) != label]:
        example = " and ".join(map(ascii, alike[0]))
        warn(f"{len(alike)} classes differ from another in blanks or Unicode normalization only, for example {example}")
    groups = table["group"][table["group"] != ""]
    if len(groups) and groups.is_unique:
        warn("every group has a single image, so that none is excluded from a gallery")


def require_outside(data: DataConfig, **outputs: str | Path | None) -> None:
    """Raise InputError, before any work, for an output in the folder whose sub-folders are read as classes."""
    if data.name != "folder" or data.root is None:
        return
    root = Path(data.root).resolve()
    for field, place in outputs.items():
        remote = place in (None, "-") or "://" in str(place)
        if not remote and Path(str(place)).resolve().is_relative_to(root):
            raise InputError("inside the folder of the images", field=field, path=place, expected=f"outside of {root}")


def _require_unseen(init_from: str, splits: dict[str, pd.DataFrame], training: set[str]) -> None:
    """Classes that the initial weights were trained on must not be evaluated as unseen."""
    try:
        seen = set(Embedder.load(init_from.removeprefix("run:"), with_proxies=False).classes)
    except InputError as error:
        raise replace(error, field="encoder.init_from") from error
    known = sorted(seen & set().union(*(split["label"] for split in splits.values())) - training)
    if known:
        raise InputError(
            f"that run was trained on {known[0]!r} ({len(known)} such classes), which would be evaluated as unseen",
            field="encoder.init_from",
            hint="assign them to train (column split of a CSV file), or start from other weights",
        )


def warn(message: str) -> None:
    """Print a warning on the main process."""
    if is_main():
        print(f"warning: {message}", file=sys.stderr)


def user_cache() -> Path:
    """Return the folder for caches, which exists; raise InputError where there can be none."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "orthoproxy"
    try:
        folder = folder.expanduser()
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError) as error:
        hint = "set XDG_CACHE_HOME to a folder that can be written"
        raise InputError("no folder for caches can be created here", path=folder, hint=hint) from error
    return folder
