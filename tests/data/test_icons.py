"""The icons data set: naming rules, cleaning, the cache, and the finished table."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image, ImageFont, ImageOps

from orthoproxy.core.errors import InputError
from orthoproxy.data.sources import icons
from orthoproxy.data.sources.icons import (
    EM,
    INK,
    SIZE,
    concept,
    draw,
    icons_table,
    naming_rules,
    package_file,
    read_glyph_map,
)

RULES = naming_rules()
FONTS = RULES["fonts"]
CARD = Path(__file__).parents[2] / "docs" / "data" / "icons.md"
FEW = ("eva", "ion", "typicons")  # the three smallest families: rendered in a second


@pytest.fixture(scope="session")
def icons_root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("icons")


@pytest.fixture(scope="session")
def table(icons_root) -> pd.DataFrame:
    return icons_table(icons_root)


@pytest.fixture
def few_families(monkeypatch):
    monkeypatch.setitem(naming_rules(), "fonts", {family: FONTS[family] for family in FEW})


@pytest.mark.parametrize(
    ("family", "glyph", "expected"),
    [
        # prefix, style, size
        ("fluent", "ic-fluent-arrow-left-24-filled", "arrow-left"),
        ("mat", "mdi-bell-outline", "bell"),
        ("remix", "bug-line", "bug"),
        ("gmi", "shopping_cart", "cart"),
        ("ion", "ion-ios-cart-outline", "cart"),
        ("typicons", "typcn-social-twitter", "twitter"),
        # numbers: of a variant, or of the picture
        ("bs", "calendar2-check-fill", "calendar-check"),
        ("eva", "eva-trash-2-outline", "trash"),
        ("remix", "home-3-fill", "house"),
        ("lucide", "icon-dice-2", "dice-2"),
        ("remix", "dice-2-line", "dice-2"),
        # words and their order
        ("fa", "circle-xmark", "x-circle"),
        ("lucide", "icon-circle-arrow-up", "arrow-up-circle"),
        ("bs", "arrow-up-circle", "arrow-up-circle"),
        ("fluent", "ic-fluent-arrow-circle-up-24-regular", "arrow-up-circle"),
        ("mat", "mdi-account-remove", "user-x"),
        ("gmi", "person_remove", "user-minus"),
        # what one family means by a name
        ("fluent", "ic-fluent-alert-24-regular", "bell"),
        ("remix", "alert-line", "alert-triangle"),
        ("gmi", "keyboard_arrow_up", "chevron-up"),
        ("eva", "eva-arrow-up", "caret-up"),
        ("ion", "ion-ios-arrow-up", "chevron-up"),
        ("lucide", "icon-delete", "backspace"),
        # whole names of one picture
        ("fa", "ellipsis", "more-horizontal"),
        ("lucide", "icon-rotate-cw", "refresh"),
        # no class should hold these
        ("lucide", "icon-apple", None),
        ("gmi", "local_activity", None),
        ("mat", "mdi-format-clear", None),
        ("fluent", "ic-fluent-badge-24-filled", None),
    ],
)
def test_concept(family, glyph, expected):
    assert concept(family, glyph) == expected


def test_the_rules_know_the_families():
    assert set(RULES["rewrites"]) == set(RULES["homonyms"]) == set(FONTS)


@pytest.mark.parametrize("family", sorted(RULES["glyphs"]))
def test_every_exception_is_of_a_glyph_that_exists(family):
    names = {name for glyph_map in FONTS[family].values() for name in read_glyph_map(family, glyph_map)}
    assert set(RULES["glyphs"][family]) <= names


def test_synonyms_lead_to_a_class_and_not_to_each_other():
    assert not set(RULES["same"].values()) & set(RULES["same"])


def test_draw_centres_and_scales_the_ink():
    font = ImageFont.truetype(package_file("lucide", "lucide.ttf"), EM)
    image = draw(font, read_glyph_map("lucide", "glyphmap.json")["icon-minus"])
    left, top, right, bottom = ImageOps.invert(image).getbbox()
    assert (right - left, left) == (INK, (SIZE - INK) // 2)
    assert abs((top + bottom) / 2 - SIZE / 2) <= 1
    assert image.getpixel((SIZE // 2, SIZE // 2)) == 0


def test_table_has_whole_classes_in_two_halves(table):
    assert set(table["role"]) == {"both"} and set(table["split"]) == {"train", "test"}
    assert table.groupby("label")["group"].nunique().min() >= 3
    assert table.groupby("label")["split"].nunique().max() == 1
    classes = table.groupby("split")["label"].nunique()
    assert classes["test"] - classes["train"] in (0, 1)
    assert set(table["group"]) == set(FONTS)


def test_splits_are_of_a_kind(table):
    images = table["split"].value_counts()
    assert 0.8 < images["train"] / images["test"] < 1.25


def test_images_are_inked_and_all_different(table):
    seen = set()
    for path in table["path"]:
        assert Path(path).is_absolute()
        with Image.open(path) as image:
            assert (image.mode, image.size) == ("L", (SIZE, SIZE))
            assert image.getextrema()[0] < 128
            seen.add(image.tobytes())
    assert len(seen) == len(table)


def test_rendering_twice_gives_the_same_bytes(tmp_path, few_families):
    first, second = icons_table(tmp_path / "a"), icons_table(tmp_path / "b")
    relative = [Path(path).relative_to(tmp_path / "a") for path in first["path"]]
    assert [Path(path).relative_to(tmp_path / "b") for path in second["path"]] == relative
    assert all((tmp_path / "a" / path).read_bytes() == (tmp_path / "b" / path).read_bytes() for path in relative)
    assert first.drop(columns="path").equals(second.drop(columns="path"))


def test_cache_is_used_again(tmp_path, few_families, monkeypatch):
    first = icons_table(tmp_path)
    monkeypatch.setattr(icons, "draw", lambda *_: pytest.fail("rendered again"))
    assert icons_table(tmp_path).equals(first)


@pytest.mark.parametrize("lost", ["images.csv", "first image"])
def test_half_a_cache_is_rendered_again(tmp_path, few_families, lost):
    first = icons_table(tmp_path)
    image = Path(first["path"][0])
    (image if lost == "first image" else image.parents[1] / "images.csv").unlink()
    assert icons_table(tmp_path).equals(first)
    assert image.is_file()


def test_interruption_leaves_nothing_behind(tmp_path, few_families, monkeypatch):
    with monkeypatch.context() as interrupted, pytest.raises(KeyboardInterrupt):
        interrupted.setattr(pd.DataFrame, "to_csv", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        icons_table(tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert len(icons_table(tmp_path)) > 0


def test_another_version_has_its_own_folder(tmp_path, few_families, monkeypatch):
    first = icons_table(tmp_path)
    monkeypatch.setattr(icons, "FORMAT_VERSION", icons.FORMAT_VERSION + 1)
    assert Path(icons_table(tmp_path)["path"][0]).parents[1] != Path(first["path"][0]).parents[1]


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    def without_lucide(name: str) -> metadata.Distribution:
        if name == "tkinter-icons-lucide":
            raise metadata.PackageNotFoundError(name)
        return metadata.Distribution.from_name(name)

    monkeypatch.setattr(metadata, "distribution", without_lucide)
    with pytest.raises(InputError, match="tkinter-icons-lucide"):
        icons_table(tmp_path)


def test_a_missing_file_is_named():
    with pytest.raises(InputError, match="tkinter-icons-eva"):
        package_file("eva", "other.ttf")


def test_the_data_card_states_what_its_commands_print(table, icons_root, capsys):
    """Only for the package versions the card is about; others may well have other icons."""
    card = CARD.read_text(encoding="utf-8")
    versions = dict(re.findall(r"`tkinter-icons-(\w+)` ([\d.]+)", card))
    assert set(versions) == set(FONTS)
    if any(metadata.version(f"tkinter-icons-{family}") != version for family, version in versions.items()):
        pytest.skip("the card is about other versions of the icon packages")
    commands, outputs = (re.findall(rf"```{language}\n(.*?)```", card, re.S) for language in ("python", "text"))
    for command, output in zip(commands, outputs, strict=True):
        command = command.replace('"data/icons"', repr(str(icons_root)))
        exec(command, {})
        assert capsys.readouterr().out == output
