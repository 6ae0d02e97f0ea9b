"""CUB-200-2011: birds, one class for each species."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import pandas as pd

from orthoproxy.core.boxes import add_boxes
from orthoproxy.core.errors import InputError
from orthoproxy.core.files import paths_inside
from orthoproxy.data.sources.text_lists import AS_PUBLISHED, check_values, find_file, read_list
from orthoproxy.data.table import make_table, source_errors

CLASSES = 200
TRAIN_CLASSES = 100  # the first ones


def cub_table(root: Path, boxes: bool = False) -> pd.DataFrame:
    """Read CUB-200-2011 in the retrieval split: classes 1 to 100 for training, 101 to 200 for test.

    Joins ``images.txt`` (id, path) and ``image_class_labels.txt`` (id, class) by id. Whether the images exist is not
    checked. Source and published counts: ``docs/data/cub.md``.

    Parameters
    ----------
    root
        The folder ``CUB_200_2011``, or the one that contains it.
    boxes
        Cut the images to the birds' boxes, in ``bounding_boxes.txt``.

    Returns
    -------
    pandas.DataFrame
        See `make_table`; in the order of ``images.txt``. A label is the name of the class's folder.

    Raises
    ------
    InputError
        If a list is missing or damaged, leads out of the folder, or does not match the other.

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
    candidates = ("images.txt", "CUB_200_2011/images.txt")
    images = find_file(root, candidates, "give the folder that CUB_200_2011.tgz was unpacked in")
    labels = images.with_name("image_class_labels.txt")
    lists = {images: ["path"], labels: ["class"]}
    if boxes:
        lists[images.with_name("bounding_boxes.txt")] = ["x", "y", "width", "height"]
    columns = {path: _read_by_id(path, names) for path, names in lists.items()}
    rows = pd.concat(columns.values(), axis=1)
    for path, one in columns.items():
        if len(missing := rows.index.difference(one.index, sort=False)):
            raise _mismatch(f"lacks image {missing[0]} of the other list ({len(missing)} such images)", path)
    rows = rows.loc[columns[images].index]
    paths, numbers = rows["path"], rows["class"].astype(int)
    folders = pd.Series([PurePosixPath(path).parent.name for path in paths], index=paths.index)
    if (mixed := numbers.groupby(folders).nunique() > 1).any():
        raise _mismatch(f"images in the folder {mixed.idxmax()!r} have different classes", labels)
    split = ["train" if number <= TRAIN_CLASSES else "test" for number in numbers]
    with source_errors("root", images):
        files = paths_inside(images.parent / "images", paths, images)
        if boxes:
            left, top, width, height = (pd.to_numeric(rows[name], errors="coerce") for name in rows.columns[2:])
            edges = zip(left, top, left + width, top + height, strict=True)
            named = zip(rows.index, files, strict=True)
            files = add_boxes("image", named, edges, "root", images.with_name("bounding_boxes.txt"))
        return make_table(files, folders.tolist(), split=split)


def _mismatch(problem: str, path: Path) -> InputError:
    return InputError(problem, field="root", path=path, hint="use the lists of one archive")


def _read_by_id(path: Path, columns: list[str]) -> pd.DataFrame:
    rows = read_list(path, ["id", *columns])
    if "class" in columns:
        check_values(rows, "class", {str(number) for number in range(1, CLASSES + 1)}, f"1 to {CLASSES}", path)
    repeated = rows.loc[rows["id"].duplicated(), "id"]
    if len(repeated):
        problem = f"line {repeated.index[0]}: image {repeated.iloc[0]} is listed twice"
        raise InputError(problem, field="root", path=path, hint=AS_PUBLISHED)
    return rows.set_index("id")
