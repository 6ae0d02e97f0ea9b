"""The fonts of the icon families: what the packages hold, read as files."""

from __future__ import annotations

import json
from collections import defaultdict
from functools import cache
from importlib import metadata
from pathlib import Path

from orthoproxy.core.errors import InputError

# The fonts of a family are its styles, each with its glyph map: name of a glyph to its code point
FONTS = {
    "bs": {"bootstrap.ttf": "glyphmap.json"},
    "eva": {"eva-icons.ttf": "glyphmap.json"},
    "fa": {
        "fa-solid-900.ttf": "glyphmap-solid.json",
        "fa-regular-400.ttf": "glyphmap-regular.json",
        "fa-brands-400.ttf": "glyphmap-brands.json",
    },
    "fluent": {
        "FluentSystemIcons-Filled.ttf": "glyphmap-filled.json",
        "FluentSystemIcons-Regular.ttf": "glyphmap-regular.json",
        "FluentSystemIcons-Light.ttf": "glyphmap-light.json",
    },
    "gmi": {
        "MaterialIcons-Regular.ttf": "glyphmap-baseline.json",
        "MaterialIconsOutlined-Regular.otf": "glyphmap-outlined.json",
        "MaterialIconsRound-Regular.otf": "glyphmap-round.json",
        "MaterialIconsSharp-Regular.otf": "glyphmap-sharp.json",
    },
    "ion": {"ionicons.ttf": "glyphmap.json"},
    "lucide": {"lucide.ttf": "glyphmap.json"},
    "mat": {"materialdesignicons-webfont.ttf": "glyphmap.json"},
    "remix": {"remixicon.ttf": "glyphmap.json"},
    "typicons": {"typicons.ttf": "glyphmap.json"},
}
# These maps list every glyph twice, with and without the prefix; in Ionicons, two glyphs can share the short name
PREFIX = {"eva": "eva-", "ion": "ion-", "mat": "mdi-", "typicons": "typcn-"}
FLUENT_SIZE = 24


def distribution(family: str) -> metadata.Distribution:
    """Return the installed package of a family, of which nothing is imported.

    Parameters
    ----------
    family
        Such as those of `FONTS`.

    Returns
    -------
    importlib.metadata.Distribution
        The package ``tkinter-icons-FAMILY``.

    Raises
    ------
    InputError
        When it is not installed.

    Examples
    --------
    >>> distribution("none")
    Traceback (most recent call last):
    ...
    orthoproxy.core.errors.InputError: icons: package 'tkinter-icons-none' is missing; pip install 'orthoproxy[icons]'
    """
    name = f"tkinter-icons-{family}"
    try:
        return metadata.distribution(name)
    except metadata.PackageNotFoundError:
        raise InputError(f"icons: package {name!r} is missing; pip install 'orthoproxy[icons]'") from None


@cache
def _package_files(family: str) -> dict[str, Path]:
    """Return the fonts and glyph maps of a family's package by their file names."""
    files = distribution(family).files or []
    return {file.name: Path(str(file.locate())) for file in files if file.suffix in {".ttf", ".otf", ".json"}}


def package_file(family: str, name: str) -> Path:
    """Return a file of a family's package.

    Parameters
    ----------
    family
        One of `FONTS`.
    name
        Name of a font or glyph map, without its folder.

    Returns
    -------
    pathlib.Path
        The installed file.

    Raises
    ------
    InputError
        When the package has no such file.

    Examples
    --------
    >>> package_file("lucide", "lucide.ttf").stat().st_size > 100_000
    True
    """
    path = _package_files(family).get(name)
    if path is None or not path.is_file():
        raise InputError(f"icons: package 'tkinter-icons-{family}' has no file {name!r}; reinstall 'orthoproxy[icons]'")
    return path


def read_glyph_map(family: str, name: str) -> dict[str, int]:
    """Read the names and code points of a font, one name a glyph and one size a picture.

    Parameters
    ----------
    family
        One of `FONTS`.
    name
        File name of one of its glyph maps.

    Returns
    -------
    dict
        Code point of each glyph, in the order of the names.

    Examples
    --------
    >>> codes = read_glyph_map("fluent", "glyphmap-light.json")
    >>> hex(codes["ic-fluent-add-32-light"])
    '0xe001'
    """
    text = package_file(family, name).read_text(encoding="utf-8")
    codes = {glyph: code if isinstance(code, int) else int(code, 16) for glyph, code in json.loads(text).items()}
    names = sorted(glyph for glyph in codes if glyph.startswith(PREFIX.get(family, "")))
    return {glyph: codes[glyph] for glyph in (one_size(names) if family == "fluent" else names)}


def one_size(names: list[str]) -> list[str]:
    """Keep, of Fluent's names that differ in size alone, the one nearest 24 (of two, the smaller).

    Parameters
    ----------
    names
        Such as ``ic-fluent-add-16-filled``: picture, size, style; all of one style.

    Returns
    -------
    list of str
        One name a picture.

    Examples
    --------
    >>> one_size(["ic-fluent-add-16-filled", "ic-fluent-add-28-filled", "ic-fluent-bug-20-filled"])
    ['ic-fluent-add-28-filled', 'ic-fluent-bug-20-filled']
    """
    by_picture = defaultdict(list)
    for name in names:
        picture, size, _style = name.rsplit("-", 2)
        by_picture[picture].append((abs(int(size) - FLUENT_SIZE), int(size), name))
    return [min(sizes)[-1] for sizes in by_picture.values()]
