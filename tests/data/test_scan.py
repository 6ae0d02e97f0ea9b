"""Looking into image files: what cannot be read is found and never stops the scan."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pandas as pd
import pytest
from errors import error_of
from PIL import Image

from orthoproxy.data import make_table
from orthoproxy.data.audit.scan import drop_rows, find_unreadable, hash_appearance, scan_images


@pytest.fixture
def damaged(tmp_path: Path) -> dict[str, str]:
    """Files by what is wrong with them."""
    paths = {name: str(tmp_path / f"{name}.jpg") for name in ("good", "truncated", "empty", "text", "missing", "last")}
    Image.radial_gradient("L").resize((160, 120)).convert("RGB").save(paths["good"])
    whole = Path(paths["good"]).read_bytes()
    Path(paths["truncated"]).write_bytes(whole[: len(whole) // 2])
    Path(paths["empty"]).touch()
    Path(paths["text"]).write_text("not an image")
    Image.new("L", (30, 50)).save(paths["last"])
    return paths


@pytest.mark.parametrize("workers", [0, 2])
def test_every_image_has_a_row_in_order(damaged: dict[str, str], workers: int) -> None:
    found = scan_images(list(damaged.values()), workers)
    assert list(found) == ["width", "height", "error"]
    rows = found.set_index(pd.Index(damaged))
    assert rows.loc["good"].tolist() == [160, 120, ""]
    assert rows.loc["last"].tolist() == [30, 50, ""]
    for name in ("truncated", "empty", "text", "missing"):
        assert rows.loc[name, "error"] and rows.loc[name, ["width", "height"]].tolist() == [0, 0]
        assert damaged[name] not in rows.loc[name, "error"]


def test_hashes_are_of_the_bytes_and_of_the_picture(damaged: dict[str, str]) -> None:
    found = scan_images(list(damaged.values()), hashes=True).set_index(pd.Index(damaged))
    assert found.loc["good", "content"] == hashlib.sha256(Path(damaged["good"]).read_bytes()).hexdigest()
    assert found.loc["good", "appearance"] == hash_appearance(Image.open(damaged["good"]))
    assert found.loc["truncated", ["content", "appearance"]].tolist() == ["", 0]


def test_unreadable_images_are_left_out_of_their_split(damaged: dict[str, str]) -> None:
    table = make_table(list(damaged.values()), ["a"] * 5 + ["b"], split=["train"] * 5 + ["test"])
    unreadable = find_unreadable(table)
    assert [Path(path).stem for path in unreadable["path"]] == ["truncated", "empty", "text", "missing"]
    assert set(unreadable["split"]) == {"train"} and set(unreadable["label"]) == {"a"}
    assert drop_rows(table, unreadable)["path"].tolist() == [damaged["good"], damaged["last"]]
    assert drop_rows(table, unreadable.iloc[:0]).equals(table)


def test_a_split_of_which_nothing_is_left_is_an_error(damaged: dict[str, str]) -> None:
    for names in (["good", "missing"], ["missing"]):
        split = ["train", "test"][-len(names) :]
        table = make_table([damaged[name] for name in names], names, split=split)
        assert error_of(drop_rows, table, find_unreadable(table)).path == damaged["missing"]
