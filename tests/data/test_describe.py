"""Sources in numbers: by split and role, and of the images that can be read."""

from __future__ import annotations

import json

import pandas as pd

from orthoproxy.data import make_table
from orthoproxy.data.audit.describe import count_images, describe_images


def table_of(split: list[str], label: str, role: list[str] | str = "both") -> pd.DataFrame:
    return make_table([f"{number}.png" for number in range(len(split))], list(label), split=split, role=role)


def test_parts_are_splits_and_roles() -> None:
    table = table_of(["train"] * 3 + ["test"] * 3, "aabccd", ["both"] * 3 + ["query", "gallery", "gallery"])
    counts = {"train": (3, 2), "query": (1, 1), "gallery": (2, 2), "test": (3, 2)}
    assert {name: tuple(count.values()) for name, count in count_images(table).items()} == counts
    assert list(count_images(table_of([""] * 3, "abb"))) == ["all"]
    assert list(count_images(table_of(["train", "validation", ""], "abc"))) == ["train", "validation", "unassigned"]


def test_images_per_class() -> None:
    described = describe_images(table_of([""] * 7, "abbcccc"))
    expected = {"smallest": 1, "median": 2.0, "mean": 2.33, "largest": 4, "single": 1}
    assert described["images_per_class"] == {"all": expected} and "sizes" not in described


def test_sizes_are_of_what_can_be_read() -> None:
    scan = pd.DataFrame({"width": [0, 10, 30, 50], "height": [0, 20, 20, 5000], "error": ["cut short", "", "", ""]})
    described = describe_images(table_of([""] * 4, "aabb"), scan)
    assert described["sizes"] == {
        "width": {"min": 10, "median": 30.0, "max": 50},
        "height": {"min": 20, "median": 20.0, "max": 5000},
        "megapixels": {"max": 0.25},
    }
    assert described["unreadable"] == {"count": 1, "images": [{"path": "0.png", "reason": "cut short"}]}
    assert json.loads(json.dumps(described)) == described
    nothing = describe_images(table_of([""], "a"), scan[:1])
    assert nothing["sizes"] is None and nothing["unreadable"]["count"] == 1
