"""Stanford Online Products: pictures of goods on sale, a class an item."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from orthoproxy.core.files import paths_inside
from orthoproxy.data.sources.text_lists import find_file, read_list
from orthoproxy.data.table import make_table

COLUMNS = ("image_id", "class_id", "super_class_id", "path")


def sop_table(root: Path) -> pd.DataFrame:
    """Read Stanford Online Products in its own split, which is the one of retrieval.

    ``Ebay_train.txt`` and ``Ebay_test.txt`` list the images with a class number; those of the test go on where those of
    the training end, so that no number is in both. Images are not looked for.

    Parameters
    ----------
    root
        The folder ``Stanford_Online_Products``, or the one it lies in.

    Returns
    -------
    pandas.DataFrame
        As `make_table`, training before test, each in the order of its list; a label is the class number as text. The
        published data are 59,551 images of 11,318 classes to train on and 60,502 of 11,316 to judge on.

    Raises
    ------
    InputError
        If a list is missing or damaged or leads out of the folder, or a class is in both.

    References
    ----------
    H. O. Song, Y. Xiang, S. Jegelka, S. Savarese: Deep Metric Learning via Lifted Structured Feature Embedding,
    CVPR 2016.

    Examples
    --------
    >>> import tempfile
    >>> header = "image_id class_id super_class_id path\\n"
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "Ebay_train.txt").write_text(header + "1 1 1 bicycle_final/111085122871_0.JPG\\n")
    ...     _ = Path(folder, "Ebay_test.txt").write_text(header + "1 11319 1 bicycle_final/251952414262_0.JPG\\n")
    ...     sop_table(Path(folder))[["label", "split", "role"]]
       label  split  role
    0      1  train  both
    1  11319   test  both
    """
    train = find_file(
        root,
        ("Ebay_train.txt", "Stanford_Online_Products/Ebay_train.txt"),
        "give the folder that Stanford_Online_Products.zip was unpacked in",
    )
    lists = {"train": train, "test": train.with_name("Ebay_test.txt")}
    rows = {split: read_list(path, COLUMNS, header=True) for split, path in lists.items()}
    paths = [place for split, path in lists.items() for place in paths_inside(train.parent, rows[split]["path"], path)]
    table = pd.concat([read.assign(split=split) for split, read in rows.items()])
    return make_table(paths, table["class_id"].tolist(), split=table["split"].tolist())
