"""DeepFashion In-Shop: clothes of a shop, a class an item, queries apart from the gallery."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from orthoproxy.core.errors import InputError
from orthoproxy.core.files import paths_inside
from orthoproxy.data.sources.text_lists import check_values, find_file, read_list
from orthoproxy.data.table import make_table

COLUMNS = ("image_name", "item_id", "evaluation_status")
PLACES = {"train": ("train", "both"), "query": ("test", "query"), "gallery": ("test", "gallery")}  # split and role


def inshop_table(root: Path) -> pd.DataFrame:
    """Read the In-Shop Clothes Retrieval benchmark of DeepFashion: queries are looked up in a gallery of their own.

    All is in ``list_eval_partition.txt``: the number of images, a header, then name, item and status of each image. Of
    the images only their folder is looked for, since copies differ: ``Img/img`` or ``img``. These are the images of 256
    pixels that published results are about, not those of ``img_highres``.

    Parameters
    ----------
    root
        The folder with ``Eval`` (or the list itself) and ``Img`` (or ``img``).

    Returns
    -------
    pandas.DataFrame
        As `make_table`, in the order of the list; a label is the item's id, such as ``id_00000002``. The published data
        are 25,882 images of 3,997 items to train on, and to judge on 14,218 queries and 12,612 images of a gallery, of
        the same 3,985 items.

    Raises
    ------
    InputError
        If the list or the folder of the images is missing, or the list is damaged, cut short or leads out of it.

    References
    ----------
    Z. Liu, P. Luo, S. Qiu, X. Wang, X. Tang: DeepFashion: Powering Robust Clothes Recognition and Retrieval with Rich
    Annotations, CVPR 2016.

    Examples
    --------
    >>> import tempfile
    >>> lines = ["3", "image_name item_id evaluation_status"]
    >>> lines += ["img/a.jpg id_00000002 train", "img/b.jpg id_00000001 query", "img/c.jpg id_00000001 gallery"]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Path(folder, "img").mkdir()
    ...     _ = Path(folder, "list_eval_partition.txt").write_text("\\n".join(lines))
    ...     inshop_table(Path(folder))[["label", "split", "role"]]
             label  split     role
    0  id_00000002  train     both
    1  id_00000001   test    query
    2  id_00000001   test  gallery
    """
    path = find_file(
        root,
        ("Eval/list_eval_partition.txt", "list_eval_partition.txt"),
        "give the folder with the benchmark's Eval and Img",
    )
    folder = next((folder for folder in (root / "Img", root) if (folder / "img").is_dir()), None)
    if folder is None:
        raise InputError(
            f"data.root: {root} has no folder Img/img and no folder img; "
            f"unpack img.zip (not img_highres.zip) in {root / 'Img'}"
        )
    rows = read_list(path, COLUMNS, header=True, counted=True)
    check_values(rows, "evaluation_status", PLACES, "train, query or gallery", path)
    split, role = zip(*rows["evaluation_status"].map(PLACES), strict=True)
    paths = paths_inside(folder.absolute(), rows["image_name"], path)
    return make_table(paths, rows["item_id"].tolist(), split=split, role=role)
