"""Verify a copy of a dataset: published counts, missing and unlisted files, unreadable images and duplicates."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from orthoproxy.core.boxes import split_box
from orthoproxy.core.errors import InputError
from orthoproxy.data.audit.describe import count_images, unreadable_images
from orthoproxy.data.audit.duplicates import group_equal, near_duplicates, relation
from orthoproxy.data.images import readable_suffixes
from orthoproxy.data.sources.cars import cars_table
from orthoproxy.data.sources.cub import cub_table
from orthoproxy.data.sources.folder import is_left_out

# Images and classes of each part in the retrieval protocol, as published
PUBLISHED = {
    "cub": {"train": (5864, 100), "test": (5924, 100)},
    "cars": {"train": (8054, 98), "test": (8131, 98)},
    "sop": {"train": (59551, 11318), "test": (60502, 11316)},
    "inshop": {"train": (25882, 3997), "query": (14218, 3985), "gallery": (12612, 3985), "test": (26830, 3985)},
}
# The folder that contains only images of the dataset; for other sources, each folder with a listed image
IMAGE_FOLDERS = {"cub": "images", "inshop": "img"}
Status = Literal["ok", "note", "failed"]
# Width and height; the dataset's README says "Images are centered and resized to 256*256"; `img_highres` is larger
PUBLISHED_SIZES = {"inshop": (256, 256)}
READERS = {"cub": cub_table, "cars": cars_table}  # of bounding boxes
TOLERATED = 0.01  # of the images; beyond, the copy is not what was published
DARK = 16  # of 255: the largest value of 12 bits, taken as 16
# What duplicates mean, by their relation
MEANINGS = {
    "within a class": "",
    "across classes": "; one image has several labels",
    "across splits": "; splits share these images",
}


@dataclass
class CopyCheck:
    """Result of a check: ``failed`` if the copy is not as it should be, ``note`` if a person should look."""

    name: str
    status: Status
    summary: str
    items: list[Any] = field(default_factory=list)  # paths, or dictionaries

    def to_dict(self) -> dict[str, Any]:
        """Return the fields and the number of items, for JSON."""
        return {**asdict(self), "count": len(self.items)}


def verify_images(
    name: str,
    table: pd.DataFrame,
    scan: pd.DataFrame | None = None,
    root: Path | None = None,
    ignore: Sequence[str] = (),
) -> list[CopyCheck]:
    """Verify a copy of a dataset: lists and file names, and with a scan with hashes also the images."""
    checks = [*_check_counts(name, table), _check_missing(table), _check_unlisted(name, table, root, ignore)]
    if scan is not None:
        checks += [_check_readable(table, scan), *_check_sizes(name, table, scan, root)]
        checks += [_check_dark(table, scan), *_check_duplicates(table, scan)]
    return checks


def _check_counts(name: str, table: pd.DataFrame) -> list[CopyCheck]:
    counts = count_images(table)
    if name not in PUBLISHED:
        found = "; ".join(f"{part} {_counted(**of_part)}".removeprefix("all ") for part, of_part in counts.items())
        return [CopyCheck("counts", "note", f"none published for {name}; found {found}")]
    checks = []
    for part, (images, classes) in PUBLISHED[name].items():
        found, published = counts.get(part, {"images": 0, "classes": 0}), {"images": images, "classes": classes}
        wrong = [] if found == published else [{"found": found, "published": published}]
        summary = f"{_counted(**found)}; published are {_counted(**published)}"
        checks.append(_check(f"counts, {part}", wrong, summary, "failed", ok=f"{_counted(**found)}, as published"))
    return checks


def _counted(images: int, classes: int) -> str:
    return f"{images:,} images of {classes:,} classes"


def _check_missing(table: pd.DataFrame) -> CopyCheck:
    missing = [path for path in table["path"] if not Path(split_box(path)[0]).is_file()]
    listed = f"of {len(table):,} listed"
    return _check("missing files", missing, f"{len(missing):,} {listed}", "failed", ok=f"none {listed}")


def _check_unlisted(name: str, table: pd.DataFrame, root: Path | None, ignore: Sequence[str]) -> CopyCheck:
    """Find images that are not listed, except hidden ones and those of the system."""
    listed = {Path(os.path.normpath(split_box(path)[0])) for path in table["path"]}
    pattern = "*" if name == "csv" else "**/*"  # images of a list may be anywhere on a disk
    unlisted = sorted(
        {
            str(path)
            for folder in _image_folders(name, listed, root)
            for path in folder.glob(pattern)
            if path.suffix.lower() in readable_suffixes()
            and path not in listed
            and not any(is_left_out(str(place), ignore) for place in _above(path.relative_to(folder)))
            and path.is_file()
        }
    )
    return _check("unlisted images", unlisted, f"{len(unlisted):,} images are not listed, and not used")


def _above(path: Path) -> list[Path]:
    return [path, *path.parents[:-1]]


def _image_folders(name: str, listed: Iterable[Path], root: Path | None) -> set[Path]:
    """Return the folders in which every image should be listed."""
    if name == "folder" and root is not None:
        return {root.absolute()}
    folders = {path.parent for path in listed}
    top = IMAGE_FOLDERS.get(name)
    return {next((above for above in (folder, *folder.parents) if above.name == top), folder) for folder in folders}


def _check_readable(table: pd.DataFrame, scan: pd.DataFrame) -> CopyCheck:
    unreadable = [item for item in unreadable_images(table, scan) if Path(split_box(item["path"])[0]).is_file()]
    return _check("unreadable images", unreadable, f"{len(unreadable):,} of {len(table):,} listed", "failed")


def _check_dark(table: pd.DataFrame, scan: pd.DataFrame) -> CopyCheck:
    dark = table["path"][((scan["error"] == "") & (scan["brightest"] <= DARK)).to_numpy()].tolist()
    return _check("almost black images", dark, f"{len(dark):,}; multiply 12-bit values in 16-bit files by 16")


def _check_sizes(name: str, table: pd.DataFrame, scan: pd.DataFrame, root: Path | None) -> list[CopyCheck]:
    """Compare sizes with the published ones, or with the published boxes, which lie inside of the original images."""
    if any(split_box(path)[1] for path in table["path"]):  # the sizes are those of the boxes
        return []
    sizes = scan.set_axis(table["path"]).loc[(scan["error"] == "").to_numpy(), ["width", "height"]]
    checks = []
    if name in PUBLISHED_SIZES:
        width, height = PUBLISHED_SIZES[name]
        wrong = sizes[(sizes != [width, height]).any(axis=1)]
        checks.append(_check_share("image sizes", wrong, sizes, f"are {width} x {height} pixels"))
    elif name in PUBLISHED:
        same = sizes if len(sizes) > 1 and sizes.min(axis=1).nunique() == 1 else sizes[:0]
        right = "differ in their shorter side, as photos of many origins"
        checks.append(_check_share("image sizes", same, sizes, right))
    if name in READERS and root:
        checks.append(_check_boxes(name, root.absolute(), sizes))
    return checks


def _check_boxes(name: str, root: Path, sizes: pd.DataFrame) -> CopyCheck:
    try:
        boxes = dict(map(split_box, READERS[name](root, boxes=True)["path"]))
    except InputError as error:
        return CopyCheck("bounding boxes", "note", f"not checked: {error.problem}")
    boxed = sizes.loc[sizes.index.isin(boxes)]
    ends = [(box.x + box.width, box.y + box.height) for box in map(boxes.get, boxed.index) if box]
    right, bottom = np.array(ends, dtype=int).reshape(-1, 2).T
    outside = boxed.loc[(right > boxed["width"] + 1) | (bottom > boxed["height"] + 1)]
    return _check_share("bounding boxes", outside, boxed, "contain their published box")


def _check_share(name: str, wrong: pd.DataFrame, of: pd.DataFrame, right: str) -> CopyCheck:
    items = [{"path": path, "reason": f"{row.width} x {row.height} pixels"} for path, row in wrong.iterrows()]
    status = "failed" if len(wrong) > TOLERATED * len(of) else "note"
    summary = f"{len(of) - len(wrong):,} of {len(of):,} {right}"
    return _check(name, items, summary, status, ok=f"all {len(of):,} {right}")


def _check_duplicates(table: pd.DataFrame, scan: pd.DataFrame) -> list[CopyCheck]:
    kinds = {"exact": group_equal(scan["content"]), "near": near_duplicates(scan)}
    checks = []
    for kind, positions in kinds.items():
        groups = [(relation(rows), rows) for rows in (table.iloc[group] for group in positions)]
        for name, meaning in MEANINGS.items():
            items = [rows[["path", "split", "label"]].to_dict("records") for found, rows in groups if found == name]
            summary = f"groups: {len(items):,}, images: {sum(map(len, items)):,}{meaning}"
            checks.append(_check(f"{kind} duplicates {name}", items, summary))
    return checks


def _check(name: str, items: list[Any], summary: str, status: Status = "note", ok: str = "none") -> CopyCheck:
    return CopyCheck(name, status, summary, items) if items else CopyCheck(name, "ok", ok)
