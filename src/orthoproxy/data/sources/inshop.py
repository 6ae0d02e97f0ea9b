"""DeepFashion In-Shop: clothes of a shop, one class for each item, with separate queries and gallery."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from orthoproxy.core.errors import InputError
from orthoproxy.core.files import paths_inside
from orthoproxy.data.sources.text_lists import check_values, find_file, read_list
from orthoproxy.data.table import make_table, source_errors

COLUMNS = ("image_name", "item_id", "evaluation_status")
SPLIT_AND_ROLE = {"train": ("train", "both"), "query": ("test", "query"), "gallery": ("test", "gallery")}


def inshop_table(root: Path) -> pd.DataFrame:
    """Read the In-Shop Clothes Retrieval benchmark of DeepFashion, whose queries have a gallery of their own.

    All is in ``list_eval_partition.txt``: the number of images, a header, then name, item and status of each image.
    Images are in ``Img/img`` or ``img``; published results are about these 256-pixel images, not ``img_highres``.
    Whether each exists is not checked. Source and published counts: ``docs/data/inshop.md``.

    Parameters
    ----------
    root
        The folder with ``Eval`` (or the list itself) and ``Img`` (or ``img``).

    Returns
    -------
    pandas.DataFrame
        See `make_table`; in the order of the list. A label is the item's id, such as ``id_00000002``.

    Raises
    ------
    InputError
        If the list or the folder of images is missing, or the list is damaged, truncated or leads out of it.
    """
    candidates = ("Eval/list_eval_partition.txt", "list_eval_partition.txt")
    path = find_file(root, candidates, "give the folder that contains Eval and Img")
    folder = next((folder for folder in (root / "Img", root) if (folder / "img").is_dir()), None)
    if folder is None:
        hint = f"unpack img.zip (not img_highres.zip) in {root / 'Img'}"
        raise InputError("no folder Img/img or img", field="root", path=root, hint=hint)
    rows = read_list(path, COLUMNS, header=True, counted=True)
    check_values(rows, "evaluation_status", SPLIT_AND_ROLE, "train, query or gallery", path)
    split, role = zip(*rows["evaluation_status"].map(SPLIT_AND_ROLE), strict=True)
    with source_errors("root", path):
        paths = paths_inside(folder.absolute(), rows["image_name"], path)
        return make_table(paths, rows["item_id"].tolist(), split=split, role=role)
