"""Looking into image files: which can be read, how large they are, and which of them look alike."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from orthoproxy.core.errors import InputError
from orthoproxy.core.progress import Progress
from orthoproxy.data.images import read_image
from orthoproxy.data.read_timeout import watched, worker_options

BATCH = 16  # images that a worker reads before it hands over what it found
HASH_SIDE = 8  # a hash of 8 x 8 bits


def scan_images(paths: Sequence[str], workers: int = 0, hashes: bool = False) -> pd.DataFrame:
    """Decode every image and note what is found; a file cut short is only found this way.

    Parameters
    ----------
    paths
        Image files.
    workers
        Processes that read them; 0 for this one. A few images are in memory at a time, however many there are.
    hashes
        Also hash bytes and appearance.

    Returns
    -------
    pandas.DataFrame
        One row a path, in their order: `width` and `height` in pixels, upright; `error`, the reason why the image
        cannot be read, or empty. With `hashes` also `content`, the SHA-256 of the file, and `appearance`, its
        `difference_hash` as an unsigned number of 64 bits. Of an image that cannot be read, all but the error is zero
        or empty.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = str(Path(folder, "a.png"))
    ...     Image.new("RGB", (20, 10)).save(path)
    ...     scan_images([path, "nowhere.png"]).to_dict("records")
    [{'width': 20, 'height': 10, 'error': ''}, {'width': 0, 'height': 0, 'error': 'No such file or directory'}]
    """
    columns = ["width", "height", "error", *(("content", "appearance") if hashes else ())]
    loader = DataLoader(_Files(paths, hashes), BATCH, collate_fn=list, **worker_options(workers))
    found = []
    with Progress("read images", len(paths)) as progress:
        for batch in watched(loader):
            found += batch
            progress.advance(len(batch), unit="images")
    table = pd.DataFrame([row[: len(columns)] for row in found], columns=columns)
    return table.astype({name: kind for name, kind in KINDS.items() if name in columns})


KINDS = {"width": "int64", "height": "int64", "error": "str", "content": "str", "appearance": "uint64"}


class _Files(Dataset):
    """What is found in each file: a row of `scan_images`."""

    def __init__(self, paths: Sequence[str], hashes: bool) -> None:
        self.paths, self.hashes = list(paths), hashes

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> tuple[int, int, str, str, int]:
        path = self.paths[row]
        try:
            image = read_image(path)
        except InputError as error:
            return 0, 0, str(error).removeprefix(f"cannot read the image {path}: "), "", 0
        except Exception as error:  # of many types, whatever the damage makes Pillow trip over
            return 0, 0, f"{type(error).__name__}: {error}", "", 0
        if not self.hashes:
            return *image.size, "", "", 0
        with Path(path).open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        return *image.size, "", content, difference_hash(image)


def difference_hash(image: Image.Image) -> int:
    """Hash what an image looks like, so that copies in another format or size differ in few bits or none.

    Reduced to 9 x 8 grey pixels, each but the last of a row gives a bit: whether the one to its right is brighter.

    Parameters
    ----------
    image
        Any size and mode; colour does not count.

    Returns
    -------
    int
        0 to 2^64 - 1; 0 for an image of one colour.

    References
    ----------
    N. Krawetz, Kind of Like That, hackerfactor.com, 2013.

    Examples
    --------
    >>> image = Image.linear_gradient("L").rotate(90)
    >>> f"{difference_hash(image):x}", f"{difference_hash(image.resize((50, 70))):x}"
    ('ffffffffffffffff', 'ffffffffffffffff')
    """
    grey = image.convert("L").resize((HASH_SIDE + 1, HASH_SIDE), Image.Resampling.LANCZOS)
    levels = np.asarray(grey)
    return int.from_bytes(np.packbits(levels[:, 1:] > levels[:, :-1]).tobytes())


def find_unreadable(table: pd.DataFrame, workers: int = 0) -> pd.DataFrame:
    """Look for the images of a table that cannot be read, or are not there.

    Parameters
    ----------
    table
        From `make_table`.
    workers
        As for `scan_images`.

    Returns
    -------
    pandas.DataFrame
        Their `path, split, label` and the `reason`, in the order of the table.

    Examples
    --------
    >>> from orthoproxy.data.table import make_table
    >>> find_unreadable(make_table(["nowhere.png"], ["cat"], split="train"))
              path  split label                     reason
    0  nowhere.png  train   cat  No such file or directory
    """
    errors = scan_images(table["path"].tolist(), workers)["error"].to_numpy()
    rows = table[["path", "split", "label"]].assign(reason=errors)
    return rows[errors != ""].reset_index(drop=True)


def drop_rows(table: pd.DataFrame, unreadable: pd.DataFrame) -> pd.DataFrame:
    """Return a table without the images that cannot be read.

    Parameters
    ----------
    table
        From `make_table`.
    unreadable
        From `find_unreadable`; images that are not in the table do not matter.

    Returns
    -------
    pandas.DataFrame
        The other rows, with a fresh index from 0.

    Raises
    ------
    InputError
        If nothing is left of a split.

    Examples
    --------
    >>> from orthoproxy.data.table import make_table
    >>> table = make_table(["1.png", "2.png"], ["a", "a"])
    >>> drop_rows(table, pd.DataFrame({"path": ["1.png"], "reason": "cut short"}))["path"].tolist()
    ['2.png']
    """
    kept = table[~table["path"].isin(unreadable["path"])].reset_index(drop=True)
    for split in table["split"].unique():
        if not (kept["split"] == split).any():
            first = unreadable[unreadable["path"].isin(table["path"][table["split"] == split])].iloc[0]
            raise InputError(
                f"data: no image{f' of {split}' * bool(split)} can be read, beginning with "
                f"{first['path']}: {first['reason']}; check data.root and data.path"
            )
    return kept
