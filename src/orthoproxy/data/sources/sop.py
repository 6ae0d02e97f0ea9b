"""Stanford Online Products: photos from online sales, one class for each item."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from orthoproxy.core.files import paths_inside
from orthoproxy.data.sources.text_lists import find_file, read_list
from orthoproxy.data.table import make_table, source_errors

COLUMNS = ("image_id", "class_id", "super_class_id", "path")


def sop_table(root: Path) -> pd.DataFrame:
    """Read Stanford Online Products in its published split, which is one for retrieval.

    ``Ebay_train.txt`` and ``Ebay_test.txt`` list the images with a class number; no number is in both. Whether the
    images exist is not checked. Source and published counts: ``docs/data/sop.md``.

    Parameters
    ----------
    root
        The folder ``Stanford_Online_Products``, or the one that contains it.

    Returns
    -------
    pandas.DataFrame
        See `make_table`; training before test, each in the order of its list. A label is the class number, a
        category the name of the image's folder without ``_final``, such as ``bicycle``.

    Raises
    ------
    InputError
        If a list is missing or damaged, leads out of the folder, or a class is in both lists.
    """
    candidates = ("Ebay_train.txt", "Stanford_Online_Products/Ebay_train.txt")
    train = find_file(root, candidates, "give the folder that Stanford_Online_Products.zip was unpacked in")
    lists = {"train": train, "test": train.with_name("Ebay_test.txt")}
    rows = {split: read_list(path, COLUMNS, header=True) for split, path in lists.items()}
    table = pd.concat([read.assign(split=split) for split, read in rows.items()])
    with source_errors("root", root):
        paths = [x for split, path in lists.items() for x in paths_inside(train.parent, rows[split]["path"], path)]
        kinds = table["path"].str.rpartition("/")[0].str.removesuffix("_final")
        return make_table(paths, table["class_id"].tolist(), table["split"].tolist(), category=kinds.tolist())
