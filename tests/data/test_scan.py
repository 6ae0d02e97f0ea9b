"""Looking into image files: what cannot be read is found and never stops the scan; hashes see through re-encoding."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from orthoproxy.core.errors import InputError
from orthoproxy.data import drop_rows, find_unreadable, make_table, scan_images
from orthoproxy.data.audit.duplicates import NEAR_DISTANCE
from orthoproxy.data.audit.scan import hash_appearance


def picture(seed: int, size: tuple[int, int] = (160, 120)) -> Image.Image:
    """A smooth picture of its own."""
    coarse = np.random.default_rng(seed).integers(0, 256, size=(6, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def encoded(image: Image.Image, **options: object) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", **options)
    return Image.open(file)


@pytest.fixture
def damaged(tmp_path: Path) -> dict[str, str]:
    """Files by what is wrong with them."""
    paths = {name: str(tmp_path / f"{name}.jpg") for name in ("good", "truncated", "empty", "text", "missing", "last")}
    picture(0).save(paths["good"])
    whole = Path(paths["good"]).read_bytes()
    Path(paths["truncated"]).write_bytes(whole[: len(whole) // 2])
    Path(paths["empty"]).touch()
    Path(paths["text"]).write_text("not an image")
    picture(1, (30, 50)).convert("L").save(paths["last"])
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


def test_no_path_makes_an_empty_table() -> None:
    assert scan_images([], hashes=True).dtypes.map(str)[["width", "appearance"]].tolist() == ["int64", "uint64"]


def test_hashes_are_of_the_bytes_and_of_the_picture(damaged: dict[str, str]) -> None:
    found = scan_images(list(damaged.values()), hashes=True).set_index(pd.Index(damaged))
    assert found.loc["good", "content"] == hashlib.sha256(Path(damaged["good"]).read_bytes()).hexdigest()
    assert found.loc["good", "appearance"] == hash_appearance(Image.open(damaged["good"]))
    assert found.loc["truncated", ["content", "appearance"]].tolist() == ["", 0]


@given(st.integers(0, 10_000), st.integers(40, 95), st.floats(0.5, 2))
def test_a_copy_of_another_size_and_quality_hashes_nearly_alike(seed: int, quality: int, scale: float) -> None:
    image = picture(seed)
    copy = encoded(image.resize((round(160 * scale), round(120 * scale))), quality=quality)
    other = picture(seed + 1)
    differing = [(hash_appearance(image) ^ hash_appearance(x)).bit_count() for x in (copy, other)]
    assert differing[0] <= NEAR_DISTANCE < differing[1]


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
        with pytest.raises(InputError) as caught:
            drop_rows(table, find_unreadable(table))
        assert caught.value.path == damaged["missing"]
