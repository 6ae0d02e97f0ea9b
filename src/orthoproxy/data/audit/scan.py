"""Decode every image of a dataset: find unreadable files, and hash bytes and appearance."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import pandas as pd
from torch.utils.data import DataLoader, Dataset

from orthoproxy.core.boxes import split_box
from orthoproxy.core.errors import InputError
from orthoproxy.core.progress import Progress
from orthoproxy.data.evaluation_images import PathList
from orthoproxy.data.images import read_image, read_image_bytes
from orthoproxy.data.loading import iterate_batches, loader_options

# Upright size in pixels; of an unreadable image, `error` says why, and all else is zero or empty
COLUMNS = {"width": "int64", "height": "int64", "error": "str"}
# With `hashes`: SHA-256 of file and box; difference hash, nearly the same for copies in other sizes; largest value
COLUMNS |= {"content": "str", "appearance": "uint64", "brightest": "int64"}


def scan_images(paths: Sequence[str], workers: int = 0, hashes: bool = False) -> pd.DataFrame:
    """Decode every image, since a truncated file is only found this way; one row a path, with `COLUMNS`."""
    loader = DataLoader(_Files(paths, hashes), batch_size=16, **loader_options(workers, collate_fn=list))
    rows = []
    with Progress("read images", len(paths)) as progress:
        for batch in iterate_batches(loader):
            rows += batch
            progress.advance(len(batch), unit="images")
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype(COLUMNS)


class _Files(Dataset):
    """Maps a row to what `scan_images` returns of a file."""

    def __init__(self, paths: Sequence[str], hashes: bool) -> None:
        self.paths, self.hashes = PathList(paths), hashes

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> tuple[int, int, str, str, int, int]:
        path = self.paths[row]
        try:
            content = read_image_bytes(path)
            image = read_image(path, content)
        except InputError as error:
            return 0, 0, error.problem, "", 0, 0
        if not self.hashes:
            return *image.size, "", "", 0, 0
        from imagehash import dhash  # imports SciPy and PyWavelets

        digest, box = hashlib.sha256(content).hexdigest(), split_box(path)[1]
        brightest = int(np.asarray(image).max())
        return *image.size, "", f"{digest}{box}", int(str(dhash(image)), 16), brightest


def find_unreadable(table: pd.DataFrame, workers: int = 0) -> pd.DataFrame:
    """Return ``path, split, label`` and the ``reason`` of each image of a table that cannot be read, or is missing."""
    errors = scan_images(table["path"].tolist(), workers)["error"].to_numpy()
    rows = table[["path", "split", "label"]].assign(reason=errors)
    return rows[errors != ""].reset_index(drop=True)


def drop_rows(table: pd.DataFrame, unreadable: pd.DataFrame) -> pd.DataFrame:
    """Return a table without its unreadable images; raises InputError if nothing is left of a split."""
    kept = table[~table["path"].isin(unreadable["path"])].reset_index(drop=True)
    for split in sorted(set(table["split"]) - set(kept["split"])):
        lost = unreadable[unreadable["path"].isin(table["path"][table["split"] == split])].iloc[0]
        raise InputError(
            f"no readable image{f' in the {split} split' * bool(split)}; the first one: {lost['reason']}",
            path=lost["path"],
        )
    return kept
