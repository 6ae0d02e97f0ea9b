"""CUB-200-2011: birds, a class a species."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import pandas as pd

from orthoproxy.core.errors import InputError
from orthoproxy.core.files import paths_inside
from orthoproxy.data.sources.text_lists import check_values, find_file, read_list
from orthoproxy.data.table import make_table

CLASSES = 200
TRAIN_CLASSES = 100  # the first ones; the others are for the test


def cub_table(root: Path) -> pd.DataFrame:
    """Read CUB-200-2011 in the split of retrieval: classes 1 to 100 to train on, 101 to 200 to judge on.

    Two lists are joined by the image's id: ``images.txt`` (id, path) and ``image_class_labels.txt`` (id, class). The
    split that comes with the data, ``train_test_split.txt``, is for classification and not used: it has every class on
    both sides. Images are not looked for, and files that are not listed, such as ``._*``, are never seen.

    Parameters
    ----------
    root
        The folder ``CUB_200_2011``, or the one it lies in.

    Returns
    -------
    pandas.DataFrame
        As `make_table`, in the order of ``images.txt``; a label is the name of the class's folder, such as
        ``001.Black_footed_Albatross``. The published data are 5,864 images to train on and 5,924 to judge on.

    Raises
    ------
    InputError
        If a list is missing or damaged or leads out of the folder, or the two are not about the same images.

    References
    ----------
    C. Wah, S. Branson, P. Welinder, P. Perona, S. Belongie: The Caltech-UCSD Birds-200-2011 Dataset. California
    Institute of Technology, CNS-TR-2011-001, 2011. The split: H. O. Song, Y. Xiang, S. Jegelka, S. Savarese: Deep
    Metric Learning via Lifted Structured Feature Embedding, CVPR 2016.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "images.txt").write_text("1 001.Albatross/a.jpg\\n2 150.Sage_Thrasher/b.jpg\\n")
    ...     _ = Path(folder, "image_class_labels.txt").write_text("2 150\\n1 1\\n")
    ...     cub_table(Path(folder))[["label", "split", "role"]]
                   label  split  role
    0      001.Albatross  train  both
    1  150.Sage_Thrasher   test  both
    """
    images = find_file(
        root, ("images.txt", "CUB_200_2011/images.txt"), "give the folder that CUB_200_2011.tgz was unpacked in"
    )
    labels = images.with_name("image_class_labels.txt")
    paths, classes = _read_by_id(images, "path"), _read_by_id(labels, "class")
    for one, other, lacking in ((paths, classes, labels), (classes, paths, images)):
        missing = [image for image in one.index if image not in other.index]
        if missing:
            raise InputError(
                f"data.root: {lacking} lacks image {missing[0]}, which the other list has ({len(missing)} such); "
                "take both lists from one archive"
            )
    numbers = classes[paths.index].astype(int)
    folders = pd.Series([PurePosixPath(path).parent.name for path in paths], index=paths.index)
    mixed = numbers.groupby(folders).nunique() > 1
    if mixed.any():
        raise InputError(
            f"data.root: images in the folder {mixed.idxmax()!r} have different classes in {labels}; "
            "take both lists from one archive"
        )
    return make_table(
        paths_inside(images.parent / "images", paths, images),
        folders.tolist(),
        split=["train" if number <= TRAIN_CLASSES else "test" for number in numbers],
    )


def _read_by_id(path: Path, column: str) -> pd.Series:
    """Read a list of an id and something about it, which becomes the values of a series indexed by the id."""
    rows = read_list(path, ("id", column))
    if column == "class":
        check_values(rows, column, {str(number) for number in range(1, CLASSES + 1)}, f"1 to {CLASSES}", path)
    repeated = rows.loc[rows["id"].duplicated(), "id"]
    if len(repeated):
        raise InputError(
            f"data.root: line {repeated.index[0]} of {path}: image {repeated.iloc[0]} was listed before; "
            "take the list as it was published"
        )
    return rows.set_index("id")[column]
