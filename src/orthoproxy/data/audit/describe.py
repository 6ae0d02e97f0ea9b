"""Counts and sizes of the images of a dataset."""

from __future__ import annotations

from typing import Any

import pandas as pd

from orthoproxy.data.table import class_numbers

PARTS = (("split", "train"), ("split", "validation"), ("role", "query"), ("role", "gallery"), ("split", "test"))


def table_parts(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Divide a table into splits and roles; rows without a split are ``all`` if no row has one, else ``unassigned``."""
    rest = "unassigned" if (table["split"] != "").any() else "all"
    parts = {name: table[table[column] == name] for column, name in PARTS} | {rest: table[table["split"] == ""]}
    return {name: part for name, part in parts.items() if len(part)}


def count_images(table: pd.DataFrame) -> dict[str, dict[str, int]]:
    """Count ``images`` and ``classes`` of each split, and of queries and gallery if the table has roles."""
    return {name: {"images": len(x), "classes": len(class_numbers(x)[1])} for name, x in table_parts(table).items()}


def describe_images(table: pd.DataFrame, scan: pd.DataFrame | None = None) -> dict[str, Any]:
    """Describe the parts of a dataset; with a scan from `scan_images` also ``sizes`` and ``unreadable`` images."""
    per_class = {name: _images_per_class(part) for name, part in table_parts(table).items()}
    description: dict[str, Any] = {**count_images(table), "images_per_class": per_class}
    if scan is not None:
        readable = (scan["error"] == "").to_numpy()
        unreadable = unreadable_images(table, scan)
        description["sizes"] = _image_sizes(scan[readable]) if readable.any() else None
        description["unreadable"] = {"count": len(unreadable), "images": unreadable}
    return description


def unreadable_images(table: pd.DataFrame, scan: pd.DataFrame) -> list[dict[str, str]]:
    """Return ``path`` and ``reason`` of each unreadable image."""
    pairs = zip(table["path"], scan["error"], strict=True)
    return [{"path": path, "reason": reason} for path, reason in pairs if reason]


def _images_per_class(part: pd.DataFrame) -> dict[str, float]:
    sizes = part["label"][part["label"] != ""].value_counts()
    if sizes.empty:  # distractors only
        sizes = pd.Series([0])
    return {
        "smallest": int(sizes.min()),
        "median": float(sizes.median()),
        "mean": round(float(sizes.mean()), 2),
        "largest": int(sizes.max()),
        "single": int((sizes == 1).sum()),
    }


def _image_sizes(scan: pd.DataFrame) -> dict[str, dict[str, float]]:
    sides = {
        side: {"min": int(scan[side].min()), "median": float(scan[side].median()), "max": int(scan[side].max())}
        for side in ("width", "height")
    }
    largest = float((scan["width"] * scan["height"]).max()) / 1e6
    return {**sides, "megapixels": {"max": float(f"{largest:.3g}")}}
