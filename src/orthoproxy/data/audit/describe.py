"""What a source of images holds, in numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

ROLES = ("query", "gallery")


def parts_of(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Divide a table into its splits and, where it has roles, queries and gallery.

    Parameters
    ----------
    table
        From `make_table`.

    Returns
    -------
    dict
        ``train``, ``validation``, ``query``, ``gallery``, ``test``: those that there are. Rows without a split are
        ``all`` if no row has one, else ``unassigned``.

    Examples
    --------
    >>> from orthoproxy.data.table import make_table
    >>> list(parts_of(make_table(["1.png", "2.png"], ["a", "a"], split="test", role=["query", "gallery"])))
    ['query', 'gallery', 'test']
    """
    of_split = {split: table[table["split"] == split] for split in ("train", "validation")}
    of_role = {role: table[table["role"] == role] for role in ROLES}
    rest = "unassigned" if (table["split"] != "").any() else "all"
    parts = {**of_split, **of_role, "test": table[table["split"] == "test"], rest: table[table["split"] == ""]}
    return {name: part for name, part in parts.items() if len(part)}


def count_images(table: pd.DataFrame) -> dict[str, dict[str, int]]:
    """Count the images and classes of each part.

    Parameters
    ----------
    table
        From `make_table`.

    Returns
    -------
    dict
        For each of `parts_of`, ``images`` and ``classes``.

    Examples
    --------
    >>> from orthoproxy.data.table import make_table
    >>> count_images(make_table(["1.png", "2.png", "3.png"], ["a", "a", "b"]))
    {'all': {'images': 3, 'classes': 2}}
    """
    return {
        name: {"images": len(part), "classes": int(part["label"].nunique())} for name, part in parts_of(table).items()
    }


def describe_images(table: pd.DataFrame, scan: pd.DataFrame | None = None) -> dict[str, Any]:
    """Describe a source of images.

    Parameters
    ----------
    table
        From `make_table`.
    scan
        From `scan_images` of its paths; None to go by the table alone.

    Returns
    -------
    dict
        What `count_images` returns; ``images_per_class``, for the same parts; and of a scan, ``sizes`` of the images
        that can be read and ``unreadable``, the others.

    Examples
    --------
    >>> from orthoproxy.data.table import make_table
    >>> describe_images(make_table(["1.png", "2.png", "3.png"], ["a", "a", "b"]))["images_per_class"]
    {'all': {'smallest': 1, 'median': 1.5, 'mean': 1.5, 'largest': 2, 'single': 1}}
    """
    parts = parts_of(table)
    description = {**count_images(table), "images_per_class": {name: _per_class(part) for name, part in parts.items()}}
    if scan is not None:
        readable = (scan["error"] == "").to_numpy()
        description["sizes"] = _sizes(scan[readable]) if readable.any() else None
        unreadable = unreadable_images(table, scan)
        description["unreadable"] = {"count": len(unreadable), "images": unreadable}
    return description


def unreadable_images(table: pd.DataFrame, scan: pd.DataFrame) -> list[dict[str, str]]:
    """List the images that cannot be read, with the reasons.

    Parameters
    ----------
    table
        From `make_table`.
    scan
        From `scan_images` of its paths.

    Returns
    -------
    list of dict
        ``path`` and ``reason`` of each.

    Examples
    --------
    >>> unreadable_images(pd.DataFrame({"path": ["1.png", "2.png"]}), pd.DataFrame({"error": ["", "cut short"]}))
    [{'path': '2.png', 'reason': 'cut short'}]
    """
    pairs = zip(table["path"], scan["error"], strict=True)
    return [{"path": path, "reason": reason} for path, reason in pairs if reason]


def _per_class(part: pd.DataFrame) -> dict[str, float]:
    sizes = part["label"].value_counts().to_numpy()
    return {
        "smallest": int(sizes.min()),
        "median": float(np.median(sizes)),
        "mean": round(float(sizes.mean()), 2),
        "largest": int(sizes.max()),
        "single": int((sizes == 1).sum()),
    }


def _sizes(scan: pd.DataFrame) -> dict[str, dict[str, float]]:
    sides = {
        side: {"min": int(scan[side].min()), "median": float(scan[side].median()), "max": int(scan[side].max())}
        for side in ("width", "height")
    }
    largest = float((scan["width"] * scan["height"]).max()) / 1e6
    return {**sides, "megapixels": {"max": float(f"{largest:.3g}")}}
