"""The icons dataset: naming rules, cleaning, the cache, and the finished table."""

from pathlib import Path

import pandas as pd
import pytest
from errors import error_of
from PIL import Image

from orthoproxy.data.sources import icons

FONTS = icons.naming_rules()["fonts"]
FEW = ("eva", "ion", "typicons")  # the three smallest families: rendered in a second


@pytest.mark.parametrize(("family", "glyph", "expected"), [
    ("mat", "mdi-bell-outline", "bell"), ("typicons", "typcn-social-twitter", "twitter"),
    ("bs", "calendar2-check-fill", "calendar-check"), ("fa", "circle-xmark", "x-circle"),
    ("mat", "mdi-account-remove", "user-x"), ("gmi", "keyboard_arrow_up", "chevron-up"),
    ("lucide", "icon-delete", "backspace"), ("lucide", "icon-apple", None),
])  # fmt: skip
def test_concept(family: str, glyph: str, expected: str | None) -> None:
    assert icons.concept(family, glyph) == expected


def test_images_are_rendered_once_for_each_version_and_completely(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(icons.naming_rules(), "fonts", {family: FONTS[family] for family in FEW})
    first = icons.icons_table(tmp_path)
    [folder] = tmp_path.iterdir()
    contents = {path: path.read_bytes() for path in folder.rglob("*.png")}
    next(iter(contents)).unlink()
    assert icons.icons_table(tmp_path).equals(first)
    assert {path: path.read_bytes() for path in folder.rglob("*.png")} == contents
    monkeypatch.setattr(pd.DataFrame, "to_csv", None)  # at the end of rendering
    assert icons.icons_table(tmp_path).equals(first)
    monkeypatch.setattr(icons, "FORMAT_VERSION", icons.FORMAT_VERSION + 1)
    with pytest.raises(TypeError):
        icons.icons_table(tmp_path)
    assert list(tmp_path.iterdir()) == [folder]


def test_missing_packages_and_files_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    error = error_of(icons.package_file, "eva", "other.ttf")
    assert "tkinter-icons-eva" in error.problem and error.hint
    monkeypatch.setattr("sys.path", [])  # where installed packages are looked for
    error = error_of(icons.icons_table, tmp_path / "icons")
    assert "tkinter-icons-" in error.problem and "orthoproxy[icons]" in error.hint


@pytest.mark.slow
def test_whole_classes_are_in_two_halves_and_all_images_differ(tmp_path: Path) -> None:
    table = icons.icons_table(tmp_path)
    assert set(table["role"]) == {"both"} and set(table["group"]) == set(FONTS)
    assert table.groupby("label")["group"].nunique().min() >= 3
    assert table.groupby("label")["split"].nunique().max() == 1
    classes, images = table.groupby("split")["label"].nunique(), table["split"].value_counts()
    assert classes["test"] - classes["train"] in (0, 1) and 0.8 < images["train"] / images["test"] < 1.25
    seen = set()
    for path in table["path"]:
        with Image.open(path) as image:
            assert (image.mode, image.size) == ("L", (icons.SIZE, icons.SIZE)) and image.getextrema()[0] < 128
            seen.add(image.tobytes())
    assert len(seen) == len(table)
