"""Find exact duplicates by file hash, and near duplicates by difference hash."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Bool, Int, UInt64
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from orthoproxy.core.boxes import split_box
from orthoproxy.data.audit.scan import scan_images

# Of 64 bits. 400 photos all stayed within it when scaled to half size and saved as JPEG of quality 75; of 8 million
# pairs of photos of cars, 19 were within it, and each was one photo twice
NEAR_DISTANCE = 4
SAMPLE = 1024  # bytes that are compared first where files have the same size, as most differ there


def duplicates_across_splits(
    paths: Sequence[str], splits: Sequence[str], sizes: Int[np.ndarray, " N"]
) -> list[list[int]]:
    """Group positions of files with the same bytes in several splits; reads none whose size is in one split only."""
    files = pd.DataFrame({"path": paths, "split": splits, "size": sizes, "content": sizes})[sizes > 0]
    for sample in (True, False, None):  # equal sizes, then equal samples, then equal bytes
        files = files[files.groupby("content")["split"].transform("nunique") > 1]
        if sample is not None:
            pairs = zip(files["path"], files["size"], strict=True)
            files = files.assign(content=[_hash_file(path, size if sample else None) for path, size in pairs])
    return [rows.tolist() for rows in files.groupby("content", sort=False).groups.values()]


def _hash_file(path: str, size: int | None) -> str:
    """Hash a file and box, or given its size a sample from its middle; one that cannot be read is like no other."""
    name, box = split_box(path)
    try:
        with Path(name).open("rb") as file:
            if size is None:
                return f"{hashlib.file_digest(file, 'sha256').hexdigest()}{box}"
            file.seek(size // 2)
            return f"{size} {hashlib.sha256(file.read(SAMPLE)).hexdigest()}{box}"
    except OSError:
        return path


def near_duplicates(scan: pd.DataFrame) -> list[list[int]]:
    """Group positions of images that look alike, in a scan with hashes, unless all are the same file and box."""
    return [group for group in group_equal(_components(scan)) if scan["content"].iloc[group].nunique() > 1]


def find_copies(table: pd.DataFrame, workers: int = 0) -> Int[np.ndarray, " N"]:
    """Number groups of copies, from the column ``copies`` or else by reading the images; -1 for images without."""
    if "copies" in table:
        return table["copies"].to_numpy(copy=True)
    component = _components(scan_images(table["path"].tolist(), workers, hashes=True))
    copies = component[component.duplicated(keep=False)]
    return copies.reindex(range(len(table)), fill_value=-1).to_numpy(copy=True)


def _components(scan: pd.DataFrame) -> pd.Series:
    """Number the connected components of the readable images, by position."""
    readable = scan[scan["content"] != ""]
    return pd.Series(hash_components(readable["appearance"].to_numpy()), readable.index, dtype="int64")


def hash_components(hashes: UInt64[np.ndarray, " N"], distance: int = NEAR_DISTANCE) -> Int[np.ndarray, " N"]:
    """Number the connected components of hashes that differ in at most `distance` bits."""
    # two such hashes agree in at least one of `distance + 1` disjoint sets of bits: only those are compared
    distinct, position = np.unique(hashes, return_inverse=True)
    component = np.arange(len(distinct))
    for first in range(distance + 1):
        keys = distinct & np.uint64(sum(1 << bit for bit in range(first, 64, distance + 1)))
        order = np.argsort(keys)
        component = _connect(distinct[order], keys[order], order, component, distance)
    return component[position]


def _connect(
    hashes: UInt64[np.ndarray, " N"],
    keys: UInt64[np.ndarray, " N"],
    order: Int[np.ndarray, " N"],
    component: Int[np.ndarray, " N"],
    distance: int,
) -> Int[np.ndarray, " N"]:
    """Merge the components of near hashes with an equal key, comparing each with the ones 1, 2, ... places later."""
    left, step = np.arange(len(keys)), 0
    while len(left):
        step += 1
        left = left[left + step < len(keys)]
        left = left[keys[left] == keys[left + step]]
        one, other = component[order[left]], component[order[left + step]]
        new = (one != other) & _has_few_bits(hashes[left] ^ hashes[left + step], distance)
        if new.any():
            edges = coo_array((np.ones(new.sum()), (one[new], other[new])), shape=(len(component), len(component)))
            component = connected_components(edges, directed=False)[1][component]
    return component


def _has_few_bits(x: UInt64[np.ndarray, " N"], count: int) -> Bool[np.ndarray, " N"]:
    for _ in range(count):
        x = x & (x - np.uint64(1))  # clears the lowest bit that is set
    return x == 0


def group_equal(values: pd.Series) -> list[list[int]]:
    """Group positions of equal values, such as ``content`` of a scan; empty text is equal to nothing."""
    repeated = values[values.duplicated(keep=False) & (values != "")]
    return [group.index.tolist() for _, group in repeated.groupby(repeated, sort=False)]


def relation(rows: pd.DataFrame) -> str:
    """Return ``across splits``, ``across classes`` or ``within a class`` for the rows of duplicates, the first true."""
    if rows["split"].nunique() > 1:
        return "across splits"
    return "across classes" if rows["label"].nunique() > 1 else "within a class"
